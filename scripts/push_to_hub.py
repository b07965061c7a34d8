r"""
Uploads a folder that `run_temporal_grounding.py` left to the Hub: model or adapter, processor, code, model card.

    python scripts/evaluate.py outputs/my_videos data/my_videos --split test --output_dir outputs/my_videos/test
    python scripts/push_to_hub.py outputs/my_videos my-name/my-videos --metrics outputs/my_videos/test/metrics.json

The model card (processing/model_card_template.md) says what was measured and how, from the files of the run: no
number in it comes from elsewhere. A README.md that somebody wrote into the folder is kept. Uploaded is what loading
needs, and the records; no checkpoints, and nothing pickled.

An adapter beside the model that it belongs to becomes one repository. An adapter alone has to name a model on the Hub;
`--base_model ID` does, if it was trained on a local folder that was pushed since.
"""

import argparse
from pathlib import Path

from processing.publishing import push_folder


def main() -> None:
    """Reads the arguments and uploads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Folder with a model, an adapter, or both.")
    parser.add_argument("repo_id", help="Repository to upload to, such as my-name/my-model.")
    parser.add_argument("--base_model", help="Hub id of the model that an adapter alone belongs to.")
    parser.add_argument("--metrics", type=Path, help="metrics.json of evaluate.py, for the model card.")
    parser.add_argument("--private", action="store_true", default=None, help="Make the repository private.")
    args = parser.parse_args()
    print(push_folder(args.folder, args.repo_id, args.base_model, args.metrics, args.private))


if __name__ == "__main__":
    main()
