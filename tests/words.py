"""A tiny classifier with a tokenizer, and texts of many lengths."""

import os
import random
import signal

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import lrp_fx

WORDS = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(40))]


def tokenizer(limit=48):
    table = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    table.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=table, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=limit,
    )  # fmt: skip


def model():
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=1, id2label={0: "bad", 1: "good"}, num_labels=2,
    )  # fmt: skip
    return tf.BertForSequenceClassification(config).eval()


def texts(count):
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS[4:], k=draw.randint(1, 30))) for _ in range(count)]


class Dying(lrp_fx.Explainer):
    """The first process that explains a batch is killed; ``mark`` is the path of a file that says that one was."""

    mark = ""

    def explain(self, values):
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return super().explain(values)
        os.kill(os.getpid(), signal.SIGKILL)
