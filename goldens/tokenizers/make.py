"""Tokenizers in the spellings that folders have, and the ids that AutoTokenizer of transformers gives for some texts.

A case is a folder's files; `tokenizer.json` names one of `bases` and what is edited in it. Run with transformers 5 this
writes golden.json, which shrink is held to; run with transformers 4 it writes generation4.json, from which the tests
know where the two differ. No model is loaded, so neither needs torch.
"""

import copy
import json
import platform
import tempfile
from pathlib import Path

import tokenizers
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

transformers.logging.set_verbosity_error()
HERE = Path(__file__).resolve().parent

TEXTS = [
    "",
    " ",
    "Who are you?",
    "  the two  and   three",
    "naïve — 日本語 🦀",
    "It's 1212, ISN'T it? I'LL see",
    "the heathen\n\n  in\tthe\r\n trees \n",
    "<s>the heathen</s> in",
    "<|begin|>the<|end|> a <|endoftext|>  the",
    "cafe\u0301 a<new> in <pad>the<mask> x",
    "<unk>▁the",
]

MERGES = [
    ("Ġ", "t"), ("h", "e"), ("Ġ", "a"), ("i", "n"), ("Ġt", "he"), ("e", "r"), ("Ġ", "s"), ("1", "2"), ("12", "12"),
    ("Ġ", "Ġ"), ("Ċ", "Ċ"), ("'", "L"), ("'L", "L"), ("t", "he"), ("Ġ", "1212"), ("ï", "v"), ("Ã", "©"), ("Ġ", "in"),
]  # fmt: skip
REGEX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def special(id, content, special=True, **more):
    token = {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False}
    return token | {"normalized": not special, "special": special} | more


def byte_vocab():
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for a, b in MERGES:
        vocab.setdefault(a + b, len(vocab))
    return vocab


def byte_merges(vocab):
    return [f"{a} {b}" for a, b in MERGES if a in vocab and b in vocab]


def byte_level():
    """GPT-2's: no begin and no end of its own."""
    vocab = byte_vocab()
    n = len(vocab)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special(n, "<|begin|>"), special(n + 1, "<|end|>"), special(n + 2, "<|endoftext|>")],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": level | {"add_prefix_space": True, "trim_offsets": False},
        "decoder": level | {"add_prefix_space": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": byte_merges(vocab)},
    }


def begins(token, id):
    """A post-processor that begins with a token."""
    sequence = lambda name, type_id=0: {"Sequence": {"id": name, "type_id": type_id}}  # noqa: E731
    one = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [one, sequence("A")],
        "pair": [one, sequence("A"), one, sequence("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    }


def llama3(base):
    """LLaMA 3's: a split of its own, whole words first, a begin."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": REGEX}, "behavior": "Isolated", "invert": False}
    base["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    base["model"]["ignore_merges"] = True
    begin = base["added_tokens"][0]
    base["post_processor"] = begins(begin["content"], begin["id"])
    return base


PIECES = ["▁", "▁the", "the", "▁in", "in", "▁a", "he", "er", "a", "e", "h", "i", "n", "t", "r", "s", "▁t", "▁h", "▁▁", "W"]
SPM_MERGES = ["h e", "i n", "t he", "▁ the", "▁ in", "▁ a", "e r", "▁ t", "▁t he", "▁ h", "▁ ▁"]


def spm():
    """LLaMA 2's: words begin with ▁, what is unknown falls back to bytes."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + PIECES
    vocab = {token: i for i, token in enumerate(tokens)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": begins("<s>", 1),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": SPM_MERGES,
        },
    }


def unigram():
    base = spm()
    vocab = sorted(base["model"]["vocab"].items(), key=lambda item: item[1])
    pieces = [[piece, 0.0 if i < 259 else -2.0 - len(PIECES) / (1 + len(piece)) / 4] for piece, i in vocab]
    base["model"] = {"type": "Unigram", "unk_id": 0, "byte_fallback": True, "vocab": pieces}
    base["normalizer"] = None
    base["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return base


BASES = {"byte": byte_level(), "llama3": llama3(byte_level()), "spm": spm(), "unigram": unigram()}
BEGIN = BASES["byte"]["added_tokens"][0]["id"]
N = len(byte_vocab())


def added(content, **more):
    token = {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": True, "rstrip": False}
    return token | {"single_word": False} | more


def decoder_of(*tokens):
    """`added_tokens_decoder` of tokens as tokenizer.json writes them."""
    return {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in tokens}


CASES = []


def case(name, model, base=None, edit=None, config=None, **files):
    """A folder: config.json's fields, tokenizer.json as a base and its edits, tokenizer_config.json, other files."""
    if base is not None:
        files["tokenizer.json"] = {"base": base, "edit": edit or {}}
    if config is not None:
        files["tokenizer_config.json"] = config
    CASES.append({"name": name, "files": {"config.json": model} | files})


LLAMA, QWEN2, GPT2, MISTRAL = ({"model_type": name} for name in ("llama", "qwen2", "gpt2", "mistral"))
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
LLAMA_CLASS = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
DEEPSEEK = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": added("<|begin|>"),
    "eos_token": added("<|end|>"),
    "legacy": True,
    "tokenizer_class": "LlamaTokenizerFast",
}
PREFIX = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}

# What begins and what ends a prompt.
case("DeepSeek-R1-Distill-Qwen", QWEN2, "byte", config=DEEPSEEK)
case("deepseek-llm", LLAMA, "byte", config=DEEPSEEK)
case("deepseek-llm with a template", LLAMA, "byte", {"post_processor": begins("<|begin|>", BEGIN)}, DEEPSEEK)
case("deepseek-llm without a post-processor", LLAMA, "byte", {"post_processor": None}, DEEPSEEK)
case("add_bos_token of a plain class", LLAMA, "byte", config=FAST | {"add_bos_token": True, "bos_token": "<|begin|>"})
case("LLaMA 3", LLAMA, "llama3", config=FAST | {"bos_token": "<|begin|>", "eos_token": "<|end|>"})
case("LLaMA 3, add_bos_token false", LLAMA, "llama3", config=FAST | {"bos_token": "<|begin|>", "add_bos_token": False})
case("LLaMA 2", LLAMA, "spm", config=LLAMA_CLASS | {"legacy": False, "add_bos_token": True, "add_eos_token": False})
case("LLaMA 2, legacy", LLAMA, "spm", config=LLAMA_CLASS | {"legacy": True})
case("LLaMA 2, legacy null", LLAMA, "spm", config=LLAMA_CLASS | {"legacy": None})
case("LLaMA 2, the slow class, add_bos_token false", LLAMA, "spm",
     config=LLAMA_CLASS | {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False})  # fmt: skip
case("LLaMA 2, add_eos_token", LLAMA, "spm", config=LLAMA_CLASS | {"add_eos_token": True})
case("LLaMA 2 without a post-processor", LLAMA, "spm", {"post_processor": None}, LLAMA_CLASS | {"add_bos_token": True})
case("LLaMA 2, add_prefix_space false", LLAMA, "spm", config=LLAMA_CLASS | {"add_prefix_space": False})
case("LLaMA 2, add_prefix_space null", LLAMA, "spm", config=LLAMA_CLASS | {"add_prefix_space": None, "legacy": True})
case("LLaMA 2 without tokenizer_config.json", LLAMA, "spm")
case("LLaMA 2, class in config.json", LLAMA | {"tokenizer_class": "LlamaTokenizer"}, "spm", config={"bos_token": "<s>"})
case("Mistral", MISTRAL, "spm", config=LLAMA_CLASS | {"legacy": False, "add_bos_token": True})
case("Mistral without a post-processor", MISTRAL, "spm", {"post_processor": None}, LLAMA_CLASS | {"add_bos_token": True})
case("Mixtral, the slow class", {"model_type": "mixtral"}, "spm", config=LLAMA_CLASS | {"tokenizer_class": "LlamaTokenizer"})
case("Code Llama", LLAMA, "spm", {"post_processor": None}, LLAMA_CLASS | {"tokenizer_class": "CodeLlamaTokenizer"})
case("Code Llama, add_bos_token false", LLAMA, "spm",
     config=LLAMA_CLASS | {"tokenizer_class": "CodeLlamaTokenizerFast", "add_bos_token": False})  # fmt: skip
case("Gemma", {"model_type": "gemma3_text"}, "spm", {"normalizer": None},
     {"tokenizer_class": "GemmaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})  # fmt: skip
case("a Unigram under LLaMA's class", LLAMA, "unigram", config=LLAMA_CLASS)
case("a Unigram under Mistral", MISTRAL, "unigram", config=LLAMA_CLASS)
case("a Unigram of a plain class", LLAMA, "unigram", config=FAST)

# Which class splits the text.
case("GPT-2", GPT2, "byte", config={"tokenizer_class": "GPT2Tokenizer"})
case("GPT-2, plain class", GPT2, "byte", config=FAST)
case("GPT-2 without tokenizer_config.json", GPT2, "byte", {"pre_tokenizer": PREFIX})
case("GPT-2, add_prefix_space", GPT2, "byte", config={"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True})
case("GPT-2, add_bos_token", GPT2, "byte", config={"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True})
case("a prefix space in tokenizer.json only", LLAMA, "byte", {"pre_tokenizer": PREFIX}, FAST)
case("a prefix space in tokenizer_config.json only", LLAMA, "byte", config=FAST | {"add_prefix_space": True})
case("Qwen2", QWEN2, "byte", config={"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|end|>", "bos_token": None})
case("Qwen2, plain class", QWEN2, "byte", config=FAST | {"eos_token": "<|endoftext|>"})
case("Qwen2 without tokenizer_config.json", QWEN2, "llama3")
case("Qwen3, plain class", {"model_type": "qwen3"}, "byte", config=FAST)
case("Qwen2's class on LLaMA", LLAMA, "byte", config={"tokenizer_class": "Qwen2TokenizerFast", "add_prefix_space": True})
case("GPT-2's class on LLaMA", LLAMA, "llama3", config={"tokenizer_class": "GPT2TokenizerFast"})
case("GPT-2's class on Qwen2", QWEN2, "byte", config={"tokenizer_class": "GPT2Tokenizer"})
case("Phi-3", {"model_type": "phi3"}, "spm", config=LLAMA_CLASS | {"add_bos_token": False})
case("StarCoder 2", {"model_type": "starcoder2"}, "byte")
case("GPT-NeoX", {"model_type": "gpt_neox"}, "byte", {"post_processor": begins("<|begin|>", BEGIN)},
     {"tokenizer_class": "GPTNeoXTokenizer", "bos_token": "<|begin|>", "add_bos_token": True})  # fmt: skip
case("OLMo 2", {"model_type": "olmo2"}, "byte", config={"tokenizer_class": "GPT2Tokenizer"})
case("RoBERTa's class", GPT2, "byte", config={"tokenizer_class": "RobertaTokenizerFast"})
case("a class that nobody knows", LLAMA, "llama3", config={"tokenizer_class": "MyOwnTokenizer", "add_bos_token": True})

# Added and special tokens.
NEW = special(N + 3, "<new>", False)
PAD = special(N + 4, "<pad>", lstrip=True)
ALL = [*BASES["byte"]["added_tokens"], NEW, PAD]
case("more tokens in tokenizer_config.json", LLAMA, "byte", config=FAST | {"added_tokens_decoder": decoder_of(*ALL)})
case("fewer tokens in tokenizer_config.json", GPT2, "byte",
     config={"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": decoder_of(ALL[0])})  # fmt: skip
case("a named token that the vocabulary lacks", LLAMA, "byte", config=FAST | {"pad_token": "<pad>"})
case("named tokens that the vocabulary has", LLAMA, "spm", {"added_tokens": []}, LLAMA_CLASS | {"legacy": False})
case("a plain class's tokens", LLAMA, "byte", config=FAST | {"mask_token": added("<mask>", lstrip=True)})
case("extra special tokens", LLAMA, "byte", config=FAST | {"extra_special_tokens": ["<new>", "<mask>"]})
case("extra special tokens by name", LLAMA, "byte", config=FAST | {"extra_special_tokens": {"image_token": "<new>"}})
case("additional special tokens", LLAMA, "byte", config=FAST | {"additional_special_tokens": ["<pad>", added("<new>")]})
case("a token of the model's own", LLAMA, "byte", config=FAST | {"image_token": "<new>"})
case("special_tokens_map.json", LLAMA, "byte", config=FAST,
     **{"special_tokens_map.json": {"bos_token": "<|begin|>", "pad_token": {"content": "<pad>", "lstrip": True,
        "normalized": False, "rstrip": False, "single_word": False}}})  # fmt: skip
case("added_tokens.json", LLAMA, "byte", config=FAST, **{"added_tokens.json": {"<new>": N + 3, "<mask>": N + 4}})
case("special tokens are split", LLAMA, "byte", config=FAST | {"split_special_tokens": True})
case("a corpus is neither cut nor filled up", LLAMA, "byte", {
    "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
    "padding": {"strategy": {"Fixed": 8}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": BEGIN,
                "pad_type_id": 0, "pad_token": "<|begin|>"}}, FAST)  # fmt: skip

# vocab.json and merges.txt.
PAIR = {"vocab.json": "byte", "merges.txt": "byte"}
QWEN_TOKENS = [special(N, "<|endoftext|>"), special(N + 1, "<|begin|>"), special(N + 2, "<|end|>")]
case("two files: GPT-2", GPT2, **PAIR)
case("two files: GPT-2, add_bos_token", GPT2,
     config={"add_bos_token": True, "bos_token": "<|begin|>", "tokenizer_class": "GPT2Tokenizer"}, **PAIR)  # fmt: skip
case("two files: GPT-2, both ends", GPT2, config={"add_bos_token": True, "add_eos_token": True, "add_prefix_space": True}, **PAIR)
case("two files: Qwen2", QWEN2, config={"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder_of(*QWEN_TOKENS),
     "eos_token": "<|end|>", "pad_token": "<|endoftext|>", "bos_token": None, "add_bos_token": True}, **PAIR)  # fmt: skip
case("two files: Qwen2, old", QWEN2, config={"tokenizer_class": "Qwen2Tokenizer"}, **PAIR, **{
    "added_tokens.json": {"<|endoftext|>": N, "<|begin|>": N + 1, "<|end|>": N + 2, "<new>": N + 3},
    "special_tokens_map.json": {"eos_token": "<|end|>", "additional_special_tokens": ["<|begin|>", "<|end|>"]}})  # fmt: skip
case("two files: RoBERTa's class", GPT2, config={"tokenizer_class": "RobertaTokenizer"}, **PAIR)
case("two files: GPT-NeoX", {"model_type": "gpt_neox"}, config={"add_bos_token": True}, **PAIR)
case("two files: GPT-2's class on LLaMA", LLAMA, config={"tokenizer_class": "GPT2Tokenizer", "bos_token": None}, **PAIR)


def text_of(name, value):
    """A file of a case as it lies in the folder."""
    if name == "tokenizer.json":
        value = copy.deepcopy(BASES[value["base"]]) | value["edit"]
    elif name == "vocab.json":
        value = BASES[value]["model"]["vocab"]
    elif name == "merges.txt":
        return "#version: 0.2\n" + "\n".join(BASES[value]["model"]["merges"]) + "\n"
    return json.dumps(value, ensure_ascii=False)


def ids_of(case):
    with tempfile.TemporaryDirectory() as folder:
        for name, value in case["files"].items():
            Path(folder, name).write_text(text_of(name, value), encoding="utf-8")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        plain = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
        prompt = [tokenizer(text).input_ids for text in TEXTS]
        return {"class": type(tokenizer).__name__, "tokens": len(tokenizer), "plain": plain, "prompt": prompt}


def write(name, head, rows):
    """A line a row, so that a difference is read case by case."""
    line = lambda value: json.dumps(value, ensure_ascii=False)  # noqa: E731
    fields = [f" {line(key)}: {line(value)}" for key, value in head.items()]
    fields.append(' "cases": [\n' + ",\n".join("  " + line(row) for row in rows) + "\n ]")
    (HERE / name).write_text("{\n" + ",\n".join(fields) + "\n}\n", encoding="utf-8")


def main():
    made_by = {
        "python": platform.python_version(),
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
    if int(transformers.__version__.split(".")[0]) >= 5:
        write("golden.json", {"made_by": made_by, "texts": TEXTS, "bases": BASES}, [c | ids_of(c) for c in CASES])
        return
    rows = []
    for one in CASES:
        try:
            rows.append({"name": one["name"]} | ids_of(one))
        except Exception as error:  # some spellings came with 5
            rows.append({"name": one["name"], "refused": type(error).__name__})
    write("generation4.json", {"made_by": made_by}, rows)


main()
