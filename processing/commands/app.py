"""`scada app`, the application for videos and for an index."""

import argparse
import sys
from pathlib import Path

from .library import VIDEO_ROOT_HELP, check_index, open_library, resolve_model
from .shared import DEVICE_HELP, THRESHOLD_HELP, add_nms_argument, check_model, parse_device, parse_score


def _port_number(text: str) -> int:
    """Parse a TCP port."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text}: expected a port from 1 to 65535.")
    return int(text)


def add_app_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="Model or adapter: Hub id or folder. Defaults to the model of the index.")
    parser.add_argument(
        "--index", type=Path, metavar="INDEX", help="Index of `scada index`, to also search its videos."
    )
    parser.add_argument("--video_root", type=Path, help=VIDEO_ROOT_HELP)
    parser.add_argument("--threshold", type=parse_score, help=f"{THRESHOLD_HELP} Visitors can change it.")
    add_nms_argument(parser)
    parser.add_argument("--device", type=parse_device, help=DEVICE_HELP)
    parser.add_argument(
        "--host", help="Address to listen on. Defaults to the local machine; 0.0.0.0 listens on all interfaces."
    )
    parser.add_argument(
        "--port", type=_port_number, help="Port to listen on. Defaults to the first free port from 7860."
    )


def app(args: argparse.Namespace) -> None:
    """Run the application until an interrupt."""
    if args.model is None and args.index is None:
        raise ValueError("Received neither --model nor --index; pass at least one of them.")
    if args.video_root is not None and args.index is None:
        raise ValueError("Received --video_root without --index; also pass --index.")
    if args.index is not None:
        check_index(args.index)
    if args.model is not None:
        check_model(args.model)
    from modeling_scada.app import check_address, launch, make_app
    from modeling_scada.inference.loading import check_device, load_pipeline

    check_address(args.host, args.port)
    library = None if args.index is None else open_library(args.index, args.video_root)
    model = args.model if library is None else resolve_model(library, args.model)
    check_device(args.device)
    print(f"Loading {model}", file=sys.stderr)
    pipe = load_pipeline(model, device=args.device)
    name = Path(model).resolve().name if Path(model).is_dir() else model
    launch(make_app(pipe, name, library, args.threshold, args.nms), library, args.host, args.port)
