r"""
Upload the output folder of `run_temporal_grounding.py` to the Hub: model or adapter, processor, code and model card.

    python scripts/evaluate.py outputs/my_videos data/my_videos --split test --output_dir outputs/my_videos/test
    python scripts/push_to_hub.py outputs/my_videos my-name/my-videos --metrics outputs/my_videos/test/metrics.json

The model card (modeling_scada/training/model_card_template.md) reports metrics and settings. All its numbers come from
the files of the run. A handwritten README.md in the folder is kept. The script uploads the files for loading and the
records, without checkpoints and pickles.

An adapter and its base model in one folder become one repository. An adapter alone requires a base model on the Hub.
If the adapter was trained on a local model, push that model first and pass its id with `--base_model ID`.
"""

import argparse

from processing.commands.models import add_push_arguments, push


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and upload the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_push_arguments(parser)
    push(parser.parse_args(argv))


if __name__ == "__main__":
    main()
