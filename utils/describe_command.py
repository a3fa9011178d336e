"""train.py's side commands: list components, print the schema, write a first config."""
import json


def run(args):
    """Do what --list, --schema or --init asks for; results go to stdout."""
    from utils import config
    if args.init:
        from utils.init_config import make_config
        make_config(args.images, args.labels, args.init)
    elif args.schema:
        print(json.dumps(config.json_schema(), indent=2))
    else:
        print(config.describe(*args.list[:2]))
