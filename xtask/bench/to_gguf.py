"""A Hugging Face folder of the families llama and gpt2 as one GGUF file in f32, for llama.cpp.

python xtask/bench/to_gguf.py MODEL FILE

Every number is kept as it is; rows of q and k are put in the order that llama.cpp rotates them in.
"""

import json
import re
import sys
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file

LLAMA = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LLAMA_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GPT2 = {
    "wte.weight": "token_embd.weight",
    "wpe.weight": "position_embd.weight",
    "ln_f.weight": "output_norm.weight",
    "ln_f.bias": "output_norm.bias",
}
GPT2_BLOCK = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def llama(config, writer):
    """Writes what a LLaMA is; returns how a tensor is told to llama.cpp."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)

    def rename(name, tensor):
        if name in LLAMA:
            return LLAMA[name], tensor
        layer, part = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name).groups()
        turned = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(part)
        if turned:
            halves = tensor.reshape(turned, 2, -1, tensor.shape[1])
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        return f"blk.{layer}.{LLAMA_BLOCK[part]}.weight", tensor

    return rename


def gpt2(config, writer):
    """The same of a GPT-2, whose matrices lie the other way round."""
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])

    def rename(name, tensor):
        name = name.removeprefix("transformer.")
        if name in GPT2:
            return GPT2[name], tensor
        found = re.fullmatch(r"h\.(\d+)\.(.+)\.(weight|bias)", name)
        if not found or found[2] not in GPT2_BLOCK:
            return None, tensor  # the mask, or the head, which is the embedding
        layer, part, kind = found.groups()
        turned = kind == "weight" and part.startswith(("attn", "mlp"))
        return f"blk.{layer}.{GPT2_BLOCK[part]}.{kind}", tensor.T if turned else tensor

    return rename


def vocabulary(folder, size, writer):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"] | {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    special = {t["id"] for t in tokenizer["added_tokens"]}
    for token, i in ids.items():
        if i < size:
            tokens[i] = token
            types[i] = gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)


def main():
    folder, file = Path(sys.argv[1]), sys.argv[2]
    config = json.loads((folder / "config.json").read_text())
    family = {"llama": llama, "gpt2": gpt2}[config["model_type"]]
    writer = gguf.GGUFWriter(file, config["model_type"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    rename = family(config, writer)
    vocabulary(folder, config["vocab_size"], writer)
    for shard in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(shard).items():
            name, tensor = rename(name, tensor)
            if name:
                writer.add_tensor(name, tensor.to(torch.float32).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
