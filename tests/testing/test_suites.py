"""The test idioms of transformers and timm, written as their users write them."""

import unittest
from typing import ClassVar

import pytest
import torch
import transformers as tf
from torch import nn

from lrp_fx import testing
from lrp_fx.testing import ExplainTesterMixin, explain_test


def ids_tensor(shape, vocab_size):
    return torch.randint(0, vocab_size, shape)


def random_attention_mask(shape):
    mask = ids_tensor(shape, 2)
    mask[:, 0] = 1
    return mask


class ModelTesterMixin:
    """What the mixins of transformers' own tests do before each of them."""

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        if "ForMultipleChoice" in model_class.__name__:
            return {k: v.unsqueeze(1).expand(-1, 3, -1).contiguous() for k, v in inputs_dict.items()}
        return inputs_dict

    def setUp(self):
        self.model_tester = self.model_tester_class(self)


class LlamaModelTester:
    batch_size, seq_length, vocab_size = 2, 7, 99

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return tf.LlamaConfig(
            vocab_size=self.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=37, max_position_embeddings=64, pad_token_id=0,
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self):
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        mask = torch.tril(torch.ones_like(input_ids))
        return self.get_config(), {"input_ids": input_ids, "attention_mask": mask}


class BertModelTester(LlamaModelTester):
    def get_config(self):
        return tf.BertConfig(
            vocab_size=self.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=37, max_position_embeddings=64, type_vocab_size=16,
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.seq_length]
        inputs = {"input_ids": ids_tensor(shape, self.vocab_size), "token_type_ids": ids_tensor(shape, 16)}
        return self.get_config(), {**inputs, "attention_mask": random_attention_mask(shape)}


class ViTModelTester:
    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return tf.ViTConfig(
            image_size=30, patch_size=5, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=37, num_labels=10,
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": torch.rand(2, 3, 30, 30)}


class ResNetModelTester(ViTModelTester):
    def get_config(self):
        return tf.ResNetConfig(
            embedding_size=10, hidden_sizes=[10, 20, 30, 40], depths=[1, 1, 2, 1], num_labels=3, hidden_act="relu"
        )


class T5ModelTester(LlamaModelTester):
    def get_config(self):
        return tf.T5Config(
            vocab_size=self.vocab_size, d_model=32, num_layers=2, num_decoder_layers=2, num_heads=4, d_ff=37, d_kv=8,
            dropout_rate=0.1, pad_token_id=0, decoder_start_token_id=0,
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self):
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size).clamp(2)
        decoder_input_ids = ids_tensor([self.batch_size, 5], self.vocab_size).clamp(2)
        mask, decoder_mask = input_ids.ne(0), decoder_input_ids.ne(0)
        inputs = {"input_ids": input_ids, "decoder_input_ids": decoder_input_ids}
        return self.get_config(), {**inputs, "attention_mask": mask, "decoder_attention_mask": decoder_mask}


@pytest.mark.slow
class LlamaModelTest(ModelTesterMixin, ExplainTesterMixin, unittest.TestCase):
    model_tester_class = LlamaModelTester
    all_model_classes = (tf.LlamaModel, tf.LlamaForCausalLM)


class BertModelTest(ModelTesterMixin, ExplainTesterMixin, unittest.TestCase):
    model_tester_class = BertModelTester
    all_model_classes = (tf.BertForMaskedLM, tf.BertForMultipleChoice)


@pytest.mark.slow
class ViTModelTest(ModelTesterMixin, ExplainTesterMixin, unittest.TestCase):
    model_tester_class = ViTModelTester
    all_model_classes = (tf.ViTModel, tf.ViTForImageClassification, tf.ViTForMaskedImageModeling)
    explain_rules = "attnlrp"


@pytest.mark.slow
class ResNetModelTest(ExplainTesterMixin, ModelTesterMixin, unittest.TestCase):
    model_tester_class = ResNetModelTester
    all_model_classes = (tf.ResNetModel, tf.ResNetForImageClassification)


@pytest.mark.slow
class T5ModelTest(ModelTesterMixin, ExplainTesterMixin, unittest.TestCase):
    model_tester_class = T5ModelTester
    all_model_classes = (tf.T5Model, tf.T5ForConditionalGeneration)


class BrokenModel(nn.Module):
    """Its answer does not depend on its inputs by anything that autograd sees."""

    def __init__(self, config):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head.bias + torch.zeros(len(x), 3)


def test_a_class_that_fails_fails_the_test():
    class Tester:
        def prepare_config_and_inputs_for_common(self):
            return {}, {"x": torch.randn(2, 4)}

    class BrokenTest(ExplainTesterMixin, unittest.TestCase):
        all_model_classes = (BrokenModel, nn.Linear)
        model_tester = Tester()
        explain_skip: ClassVar = {"Linear": "takes no configuration"}

    result = unittest.TestResult()
    BrokenTest("test_explain").run(result)
    assert len(result.failures) == 1 and "BrokenModel" in result.failures[0][1] and not result.errors


# timm's idiom: names of models, one function that makes them, one size of image


def block(inputs, outputs, stride):
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Attended(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x):
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Patches(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Conv2d(3, width, 8, 8)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


def head(width):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


MODELS = {
    "resnet_tiny": lambda: nn.Sequential(block(3, 8, 2), Residual(block(8, 8, 1)), nn.MaxPool2d(2), head(8)),
    "seresnet_tiny": lambda: nn.Sequential(block(3, 8, 2), Residual(nn.Sequential(block(8, 8, 1), Attended(8))), head(8)),
    "convnext_tiny": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), Residual(nn.Sequential(nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.GroupNorm(1, 8), nn.GELU())), head(8)
    ),
    "mixer_tiny": lambda: nn.Sequential(
        Patches(16), Residual(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))), Mean(), nn.Linear(16, 10)
    ),
    "vit_tiny": lambda: nn.Sequential(
        Patches(16), nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True, activation="gelu"), Mean(), nn.Linear(16, 10)
    ),
}  # fmt: skip


def list_models(exclude=()):
    return sorted(MODELS.keys() - set(exclude))


def create_model(model_name, pretrained=False):
    return MODELS[model_name]()


@pytest.mark.parametrize("model_name", list_models(exclude=["vit_tiny"])[:2])
@pytest.mark.parametrize("batch_size", [1])
def test_model_forward_and_explain(model_name, batch_size):
    """As in timm's test_models.py, with one line more."""
    model = create_model(model_name, pretrained=False)
    model.eval()
    inputs = torch.randn((batch_size, 3, 32, 32))
    outputs = model(inputs)
    assert outputs.shape[0] == batch_size and not torch.isnan(outputs).any()
    testing.assert_explainable(model, inputs)


test_explain = explain_test(list_models(), create_model, lambda model: torch.randn(1, 3, 32, 32))
