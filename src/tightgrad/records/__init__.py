"""Where step records go: files, experiment trackers, the terminal. Trackers are imported when they are used."""

from tightgrad.records.jsonl import Jsonl as Jsonl
from tightgrad.records.mlflow import MLflow as MLflow
from tightgrad.records.tensorboard import TensorBoard as TensorBoard
from tightgrad.records.terminal import Terminal as Terminal
from tightgrad.records.wandb import WandB as WandB
from tightgrad.records.writer import RecordWriter as RecordWriter
