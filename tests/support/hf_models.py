"""Tiny Hugging Face models with ragged data, and how far `TightTrainer` is from the float64 big batch on them."""

from copy import deepcopy

import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

import tightgrad as tg
from tightgrad.integrations.transformers import TightTrainer

VOCABULARY, LENGTH, ROWS, BATCH = 13, 10, 8, 2
LENGTHS = (10, 9, 2, 1, 3, 8, 10, 10)  # of the sentences: the halves of a batch and the batches differ
IGNORED = -100

BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
BART = {"vocab_size": VOCABULARY, "d_model": 16, "decoder_layers": 1, "decoder_ffn_dim": 16, "dropout": 0.0}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
WAV2VEC2 = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (8,),
    "conv_kernel": (4,),
    "conv_stride": (4,),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
}


def bert(kind, **settings):
    return kind(BertConfig(**BERT, **settings))


MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
    "masked": lambda: bert(BertForMaskedLM),
    "tokens": lambda: bert(BertForTokenClassification, num_labels=4),
    "classes": lambda: bert(BertForSequenceClassification, num_labels=3),
    "regression": lambda: bert(BertForSequenceClassification, num_labels=1),
    "several": lambda: bert(BertForSequenceClassification, num_labels=3, problem_type="multi_label_classification"),
    "answers": lambda: bert(BertForQuestionAnswering),
    "t5": lambda: T5ForConditionalGeneration(T5Config(**T5, dropout_rate=0.0, decoder_start_token_id=0)),
    "ctc": lambda: Wav2Vec2ForCTC(Wav2Vec2Config(**WAV2VEC2, ctc_loss_reduction="mean")),
    "ctc_sum": lambda: Wav2Vec2ForCTC(Wav2Vec2Config(**WAV2VEC2)),
    "mlm_nsp": lambda: bert(BertForPreTraining),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=2)),
    "router": lambda: MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=2, output_router_logits=True)),
    "bart": lambda: BartForCausalLM(BartConfig(**BART, decoder_attention_heads=2)),
}


class Rows(Dataset):
    """The same sentences with the labels that each model takes."""

    def __init__(self, name):
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(1, 4, (ROWS, LENGTH), generator=generator)
        labels = torch.where(torch.arange(LENGTH)[None] < torch.tensor(LENGTHS)[:, None], tokens, IGNORED)
        classes = torch.randint(0, 3, (ROWS,), generator=generator)
        sound = {"input_values": torch.randn(ROWS, 120, generator=generator), "labels": labels}
        some = {
            "classes": {"labels": torch.where(torch.arange(ROWS) % 3 == 1, IGNORED, classes)},
            "regression": {"labels": torch.randn(ROWS, generator=generator)},
            "several": {"labels": torch.rand(ROWS, 3, generator=generator)},
            "answers": {
                "start_positions": torch.tensor([0, 1, 30, 30, 5, -1, 10, 3]),
                "end_positions": torch.tensor([2, 1, 10, 11, 9, 4, 12, 8]),
            },
            "mlm_nsp": {"labels": labels, "next_sentence_label": classes % 2},
        }
        self.columns = sound if "ctc" in name else {"input_ids": tokens, **some.get(name, {"labels": labels})}

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return {name: column[index] for name, column in self.columns.items()}


class InOrder(TightTrainer):
    def _get_train_sampler(self, *args):
        return SequentialSampler(self.train_dataset)


def model_of(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name]()


def arguments(folder, **settings):
    defaults = {"per_device_train_batch_size": BATCH, "gradient_accumulation_steps": ROWS // BATCH, "max_steps": 1}
    defaults |= {"learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "use_cpu": True}
    defaults |= {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    return TrainingArguments(output_dir=str(folder), **{**defaults, **settings})


def trainer_of(name, folder, plan=None, model=None, kind=InOrder, optimizer=None, settings=None, **kwargs):
    model = model or model_of(name)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=1.0)
    return kind(
        plan=plan or tg.Plan(),
        model=model,
        args=arguments(folder, **(settings or {})),
        train_dataset=Rows(name),
        optimizers=(optimizer, None),
        **kwargs,
    )


def relative_error(name, folder, loss_of=None, **kwargs):
    """Of one step's gradient, against one float64 batch of all rows (float32 for a mixture of experts)."""
    model = model_of(name)
    big = deepcopy(model).to(torch.float32 if name == "mixtral" else torch.float64).train()
    columns = {n: c.to(big.dtype) if n == "input_values" else c for n, c in Rows(name).columns.items()}
    loss = big(**columns).loss if loss_of is None else loss_of(big, columns)
    loss.backward()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer_of(name, folder, model=model, **kwargs).train()
    wrong = right = 0.0
    for n, parameter in big.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found = (before[n] - model.get_parameter(n).detach()).double()
        wrong, right = wrong + float((found - grad).square().sum()), right + float(grad.square().sum())
    return (wrong / right) ** 0.5
