"""Train a segmentation network from a JSON config."""
import sys

from utils import console, distributed
from utils.arguments import add_overrides, command_parser, parse_with_overrides

EXAMPLES = """examples:
  python train.py --config config.json
  python train.py -c configs/camvid_enet.json trainer.epochs=5 train_loader.args.batch_size=4
  python train.py -r saved/shapes/11-21_09-00-00/last.pth       # go on after an interruption
  torchrun --nproc_per_node=4 train.py -c config.json
"""


def parse(argv):
    parser = command_parser("train.py", __doc__, EXAMPLES + "\n")
    add = parser.add_argument
    add("-c", "--config", help="config file (default: config.json, or the checkpoint's)")
    add("-r", "--resume", metavar="PATH|auto",
        help="go on from a checkpoint; auto: the newest last.pth of this run name, if any")
    add("--resume-allow-changes", action="store_true",
        help="with -r: go on although batch size, seed or data are not the checkpoint's")
    add("-d", "--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    add("--dry-run", action="store_true", help="check config and data, build everything, stop")
    add("--list", nargs="*", metavar="KIND [NAME]",
        help="list components with their arguments: models, backbones, datasets, losses, …")
    add("--schema", action="store_true", help="print a JSON Schema of the config and stop")
    add("--print-config", action="store_true", help="print the complete config and stop")
    add("--init", metavar="FILE", help="look at --images and --labels, write a config and stop")
    add("--images", metavar="DIR", help="with --init: the folder of images")
    add("--labels", metavar="DIR", help="with --init: the folder of label images")
    add("--version", action=console.ShowVersion)
    add_overrides(parser, "trainer.epochs=5")
    args = parse_with_overrides(parser, argv)
    if args.resume not in (None, "auto") and \
            any(text.startswith("trainer.finetune_from=") for text in args.overrides):
        parser.error("-r goes on with the weights of its checkpoint: trainer.finetune_from has no "
                     "effect with it; leave one of the two out")
    if args.init and not (args.images and args.labels):
        parser.error("--init needs --images and --labels")
    return args


def main(argv=None):
    args = parse(argv)
    if args.list is not None or args.schema or args.init:
        from utils.describe_command import run
        return run(args)

    from utils.run_setup import open_run, start_processes
    with distributed.one_voice():
        run = open_run(args)              # the config, checked, and the checkpoint to go on from
        if args.print_config:
            return run.print_config()
        device = start_processes(run, args)
        from dataloader.loader import make_loader
        from trainer import Trainer
        from utils.config import build
        from utils.criterion import Criterion
        from utils.normalize import Normalize

        config = run.config
        common = {"ignore_index": config["ignore_index"], "seed": config["seed"],
                  "rank": distributed.rank(), "world_size": distributed.world_size()}
        train_loader = make_loader(config["train_loader"], training=True, **common)
        val_loader = config["val_loader"] and make_loader(config["val_loader"], **common)
        dataset = train_loader.dataset
        run.require_same_data(dataset)
        model = build("models", run.arch, num_classes=dataset.num_classes)
        criterion = Criterion(config["loss"], model.output_weights, config["ignore_index"],
                              config["loss_weights"], dataset.num_classes)
        normalize = Normalize(dataset.mean, dataset.std)
        if args.dry_run:
            return run.report(model, train_loader, val_loader)
        with run.folder() as folder:
            Trainer(model, criterion, normalize, train_loader, val_loader, config, folder, device,
                    run.checkpoint, **config["trainer"]).train()


if __name__ == "__main__":
    sys.exit(console.run(main))
