"""Train a segmentation network from a JSON config."""
import argparse

from utils.cli import console
from utils.cli.arguments import (
    add_init,
    add_overrides,
    check_init,
    command_parser,
    one_action,
    parse_with_overrides,
)
from utils.machine import distributed

EXAMPLES = """examples:
  python train.py --config config.json
  python train.py -c configs/camvid_enet.json trainer.epochs=5 train_loader.args.batch_size=4
  python train.py -r saved/shapes/2026-11-21_09-00-00/last.pth       # resume after an interruption
  torchrun --nproc_per_node=4 train.py -c config.json
"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("train.py", __doc__, EXAMPLES + "\n")
    add = parser.add_argument
    add("-c", "--config", help="config file (default: config.json, or the checkpoint's)")
    add("-r", "--resume", metavar="PATH|auto",
        help="resume from a checkpoint, or from the newest one in a folder; auto: from the newest "
             "one of this run name, or start a new run")
    add("--resume-allow-changes", action="store_true",
        help="with -r: use batches, data and optimizer settings other than the checkpoint's")
    add("-d", "--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    add("--dry-run", action="store_true",
        help="build everything, try one step and one validation image, write nothing, and stop")
    add("--list", nargs="*", metavar="KIND [NAME]",
        help="components and their arguments (models …); a word searches; recipes: the configs")
    add("--schema", action="store_true", help="print a JSON Schema of the config and stop")
    add("--print-config", action="store_true", help="print the complete config and stop")
    add_init(parser)
    add("--version", action=console.ShowVersion)
    add_overrides(parser, "trainer.epochs=5")
    args = parse_with_overrides(parser, argv)
    if args.resume not in (None, "auto") and \
            any(text.startswith("trainer.finetune_from=") for text in args.overrides):
        parser.error("-r and trainer.finetune_from both choose the weights: give only one of them")
    if args.resume_allow_changes and not args.resume:
        parser.error("--resume-allow-changes has an effect only with -r")
    one_action(parser, {"--list": args.list is not None, "--schema": args.schema,
                        "--init": args.init, "--print-config": args.print_config,
                        "--dry-run": args.dry_run},
               {"-c": args.config, "-r": args.resume, "-d": args.device,
                "KEY=VALUE": args.overrides}, ("--list", "--schema", "--init"))
    if args.list and len(args.list) > 3:
        parser.error(f"--list takes a KIND and a NAME, found {' '.join(args.list)}")
    check_init(parser, args)
    return args


def main(argv: list[str] | None = None) -> int | None:
    args = parse(argv)
    if args.list is not None or args.schema or args.init:
        from utils.config.docs import side_command
        return side_command(args)

    console.notice("reading config and data …")     # before torch, whose import takes seconds
    from utils.training.run_setup import start_processes
    from utils.training.stages import open_runs, print_configs
    with distributed.reporting_once():
        if args.print_config:
            return print_configs(args)
        for run in open_runs(args):       # the checked config, and the checkpoint to resume from
            device = start_processes(run, args)
            from dataloader.loader import make_loader
            from trainer import Trainer
            from utils.training.criterion import Criterion
            config = run.config
            common = {"ignore_index": config["ignore_index"], "seed": config["seed"],
                      "normalize": config["normalize"],
                      "rank": distributed.rank(), "world_size": distributed.world_size()}
            train_loader = make_loader(config["train_loader"], training=True, **common)
            val_loader = config["val_loader"] and make_loader(config["val_loader"], **common)
            dataset = train_loader.dataset
            run.require_same_data(dataset)
            dataset.require_same_classes(val_loader.dataset if val_loader else None)
            model = run.network(dataset.num_classes, dataset.in_channels)
            criterion = Criterion(config["loss"], model.output_weights, config["ignore_index"],
                                  config["loss_weights"], dataset.num_classes, model.activation)
            parts = model, criterion, dataset.normalization(), train_loader, val_loader, config
            start = run.checkpoint, run.checkpoint_path
            if args.dry_run:
                trainer = Trainer(*parts, run.intended_folder, device, *start)
                run.report(trainer, trainer.rehearse())
                continue
            with run.folder() as folder:
                run.stopped_by = Trainer(*parts, folder, device, *start).train()


if __name__ == "__main__":
    distributed.exit_after(lambda: console.run(main))
