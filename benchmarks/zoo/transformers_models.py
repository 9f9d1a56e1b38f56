"""Models of transformers with two layers or so, from configurations, with random weights."""

from __future__ import annotations

import torchvision_ops  # noqa: F401 - before what imports torchvision

# isort: split
from typing import Any

import torch
import torch.nn.functional as F
import transformers as hf
from ingredients import Keywords, both, mean_square, normals, tokens, zoo_model
from torch import nn

from gpubench.workloads.workload import Batch, Options, Workload

_WORDS = 200
_ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _next_token(model: nn.Module, batch: Batch) -> torch.Tensor:
    logits = model(*batch).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), batch[0][:, 1:].flatten())


def gpt2() -> Workload:
    """`Conv1D` layers, which are `addmm`; dropout in training."""

    def build() -> nn.Module:
        config = hf.GPT2Config(vocab_size=_WORDS, n_positions=64, n_embd=96, n_layer=2, n_head=4, **_ENDS)
        return Keywords(hf.GPT2LMHeadModel(config), "input_ids", use_cache=False)

    return zoo_model("transformers-gpt2", build, tokens(_WORDS, 48), loss=_next_token)


def bloom() -> Workload:
    """Attention by `baddbmm` onto a bias that grows with distance."""

    def build() -> nn.Module:
        config = hf.BloomConfig(
            vocab_size=_WORDS, hidden_size=96, n_layer=2, n_head=4, hidden_dropout=0.0, attention_dropout=0.0, **_ENDS
        )
        return Keywords(hf.BloomForCausalLM(config), "input_ids", use_cache=False)

    return zoo_model("transformers-bloom", build, tokens(_WORDS, 48), loss=_next_token)


def _llama() -> Any:
    config = hf.LlamaConfig(
        vocab_size=_WORDS,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **_ENDS,
    )
    return hf.LlamaForCausalLM(config)


def llama_with_cache() -> Workload:
    """Returns its cache of keys and values, an object, beside the logits."""
    return zoo_model(
        "transformers-llama-with-cache",
        lambda: Keywords(_llama(), "input_ids", use_cache=True),
        tokens(_WORDS, 48),
        loss=_next_token,
    )


def llama_bf16() -> Workload:
    """Built in bfloat16, as checkpoints of language models are."""

    def build() -> nn.Module:
        return Keywords(_llama().to(torch.bfloat16), "input_ids", use_cache=False)

    return zoo_model("transformers-llama-bf16", build, tokens(_WORDS, 48))


def llama_forbidden_words() -> Workload:
    """Half of the logits are minus infinity."""

    def infer(model: nn.Module, batch: Batch, options: Options) -> torch.Tensor:
        logits = model(*batch).logits
        forbidden = torch.arange(logits.shape[-1]) % 2 == 1
        return logits.masked_fill(forbidden, -torch.inf)

    def build() -> nn.Module:
        return Keywords(_llama(), "input_ids", use_cache=False)

    return zoo_model("transformers-llama-forbidden-words", build, tokens(_WORDS, 48), infer=infer)


def _padding(count: int, generator: torch.Generator) -> Batch:
    lengths = torch.randint(20, 49, (count, 1), generator=generator)
    return ((torch.arange(48)[None] < lengths).long(),)


def bert() -> Workload:
    """Sequences of different lengths, with a mask."""

    def build() -> nn.Module:
        config = hf.BertConfig(
            vocab_size=_WORDS,
            hidden_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=192,
            max_position_embeddings=64,
        )
        return Keywords(hf.BertForMaskedLM(config), "input_ids", "attention_mask")

    return zoo_model("transformers-bert", build, both(tokens(_WORDS, 48), _padding), trains=True)


def t5() -> Workload:
    """Encoder and decoder; in bfloat16 some of its layers stay in fp32."""

    def build() -> nn.Module:
        config = hf.T5Config(
            vocab_size=_WORDS,
            d_model=96,
            d_kv=24,
            d_ff=192,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
        return Keywords(hf.T5ForConditionalGeneration(config), "input_ids", "decoder_input_ids", use_cache=False)

    return zoo_model("transformers-t5", build, tokens(_WORDS, 40, 24), trains=True)


def whisper() -> Workload:
    """Sound to text: two 1-D convolutions, then an encoder and a decoder."""

    def build() -> nn.Module:
        config = hf.WhisperConfig(
            vocab_size=_WORDS,
            num_mel_bins=40,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            d_model=96,
            encoder_ffn_dim=192,
            decoder_ffn_dim=192,
            max_source_positions=50,
            max_target_positions=32,
            decoder_start_token_id=1,
            suppress_tokens=None,
            begin_suppress_tokens=None,
            **_ENDS,
        )
        whole = hf.WhisperForConditionalGeneration(config)
        return Keywords(whole, "input_features", "decoder_input_ids", use_cache=False)

    return zoo_model("transformers-whisper", build, both(normals((40, 100)), tokens(_WORDS, 16)))


def wav2vec2() -> Workload:
    """Weight norm on a grouped 1-D convolution over positions."""

    def build() -> nn.Module:
        config = hf.Wav2Vec2Config(
            vocab_size=32,
            hidden_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=192,
            conv_dim=(32, 32, 32),
            conv_stride=(5, 4, 4),
            conv_kernel=(10, 8, 4),
            num_feat_extract_layers=3,
            num_conv_pos_embeddings=32,
            num_conv_pos_embedding_groups=4,
            apply_spec_augment=False,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            final_dropout=0.0,
            layerdrop=0.0,
        )
        return Keywords(hf.Wav2Vec2ForCTC(config), "input_values")

    return zoo_model("transformers-wav2vec2", build, normals((4000,)), trains=True)


def clip() -> Workload:
    """Two towers, and a mapping of outputs of very different sizes."""

    def build() -> nn.Module:
        layers = {
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "projection_dim": 64,
        }
        config = hf.CLIPConfig(
            text_config={**layers, "vocab_size": _WORDS, "max_position_embeddings": 24, **_ENDS},
            vision_config={**layers, "image_size": 32, "patch_size": 8},
            projection_dim=64,
        )
        return Keywords(hf.CLIPModel(config), "input_ids", "pixel_values")

    return zoo_model("transformers-clip", build, both(tokens(_WORDS, 16), normals((3, 32, 32))))


def mamba() -> Workload:
    """A state-space model in plain torch: a loop over positions, mostly elementwise."""

    def build() -> nn.Module:
        config = hf.MambaConfig(
            vocab_size=_WORDS, hidden_size=64, state_size=8, num_hidden_layers=2, use_cache=False, **_ENDS
        )
        return Keywords(hf.MambaForCausalLM(config), "input_ids", use_cache=False)

    return zoo_model("transformers-mamba", build, tokens(_WORDS, 16), loss=_next_token)


def mixtral() -> Workload:
    """Experts chosen for each token: rounding can choose another."""

    def build() -> nn.Module:
        config = hf.MixtralConfig(
            vocab_size=_WORDS,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
            num_experts_per_tok=2,
            **_ENDS,
        )
        return Keywords(hf.MixtralForCausalLM(config), "input_ids", use_cache=False)

    return zoo_model("transformers-mixtral", build, tokens(_WORDS, 32))


def hifigan() -> Workload:
    """A vocoder: transposed 1-D convolutions with weight norm, and a long output."""

    def build() -> nn.Module:
        config = hf.SpeechT5HifiGanConfig(
            model_in_dim=20,
            upsample_initial_channel=32,
            upsample_rates=[4, 4],
            upsample_kernel_sizes=[8, 8],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
        )
        return hf.SpeechT5HifiGan(config)

    return zoo_model("transformers-hifigan", build, normals((40, 20)))


def encodec() -> Workload:
    """Encoder and decoder with an LSTM in each; the step never calls the model itself."""

    def build() -> nn.Module:
        config = hf.EncodecConfig(
            hidden_size=32,
            num_filters=8,
            num_lstm_layers=1,
            upsampling_ratios=[4, 2],
            codebook_size=64,
            codebook_dim=32,
        )
        return hf.EncodecModel(config)

    def infer(model: Any, batch: Batch, options: Options) -> Any:
        return model.decoder(model.encoder(*batch))

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        return mean_square(infer(model, batch, {}))

    return zoo_model(
        "transformers-encodec", build, normals((1, 800)), infer=infer, loss=loss, compile_targets=("encoder", "decoder")
    )
