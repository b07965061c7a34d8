r"""
Uploads a folder that `run_temporal_grounding.py` left to the Hub: model or adapter, processor, code, model card.

    python scripts/evaluate.py outputs/my_videos data/my_videos --split test --output_dir outputs/my_videos/test
    python scripts/push_to_hub.py outputs/my_videos my-name/my-videos --metrics outputs/my_videos/test/metrics.json

The model card (modeling_scada/training/model_card_template.md) says what was measured and how, from the files of the
run: no number in it comes from elsewhere. A README.md that somebody wrote into the folder is kept. Uploaded is what
loading needs, and the records; no checkpoints, and nothing pickled.

An adapter beside the model that it belongs to becomes one repository. An adapter alone has to name a model on the Hub;
`--base_model ID` does, if it was trained on a local folder that was pushed since.
"""

import argparse

from processing.commands.models import add_push_arguments, push


def main(argv: list[str] | None = None) -> None:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_push_arguments(parser)
    push(parser.parse_args(argv))


if __name__ == "__main__":
    main()
