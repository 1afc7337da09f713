"""What families of models share, whatever their framework.

A family's programs (`train`, `predict`, `infer`, `speed`) are started by scripts/run.sh, with the work folder in
WORK_DIR. There they leave three files, and the tool that started them reads nothing else but results: `progress.jsonl`
(`ascendet_common.progress`), `error.json` (`ascendet_common.errors`) and, while training, `last_checkpoint`, which
holds the name of the checkpoint to continue from.
"""
