"""The configuration of a model that shrink converted: its donor's, with an `mla` section that says what each layer caches.

`config.json` has `"model_type": "shrink"`, so that nothing takes the folder for its donor. In memory the configuration is an
instance of the donor's own class (`LlamaConfig`, ...) under the name `ShrinkConfig`, with the donor's `model_type`: whatever
transformers looks up by either finds what it would find for the donor.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import transformers
from transformers import CONFIG_MAPPING

PretrainedConfig: Any = getattr(transformers, "PreTrainedConfig", None) or transformers.PretrainedConfig


class ShrinkConfig(PretrainedConfig):
    """Opens `config.json`; what comes back is of the donor's class."""

    model_type = "shrink"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration of a folder, from its `config.json`.

        Raises `ValueError` where it is not one that shrink wrote, or of a donor that this transformers does not have.
        """
        fields = dict(config_dict)
        mla = fields.get("mla")
        if not isinstance(mla, dict) or not isinstance(mla.get("layers"), list):
            raise ValueError("config.json has no `mla` section: shrink did not write this folder")
        if mla.get("version") != 1:
            raise ValueError(
                f"config.json has version {mla.get('version')} of shrink's section, this code reads 1: "
                "take the code that the same shrink writes"
            )
        donor = (mla.get("donor") or {}).get("model_type") or fields.get("model_type")
        fields.pop("model_type", None)
        if int(transformers.__version__.split(".")[0]) < 5:
            before_5(fields)
        return config_class(donor).from_dict(fields, **kwargs)


def before_5(fields: dict[str, Any]) -> None:
    """Spells the rotary embedding as transformers 4 reads it: it would ignore the other spelling without a word."""
    rope = fields.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        fields.setdefault("rope_theta", rope["rope_theta"])
        scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
        if scaling.get("rope_type", "default") != "default" and fields.get("rope_scaling") is None:
            fields["rope_scaling"] = scaling


class _Converted:
    """What a donor's configuration gains."""

    model_type: str

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes, which make the class anew."""
        return restored, (self.model_type, self.__dict__)

    def to_dict(self) -> dict[str, Any]:
        """As `config.json` has it."""
        fields: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        fields["model_type"] = ShrinkConfig.model_type
        fields["architectures"] = ["ShrinkForCausalLM"]
        if isinstance(fields.get("mla"), dict):  # originals that were stored beside are not loaded, and not saved
            fields["mla"]["store_original_weights"] = False
        partial = (getattr(self, "rope_parameters", None) or {}).get("partial_rotary_factor")
        if self.model_type == "gpt_neox" and partial is not None:
            fields["rotary_pct"] = partial  # without which 5.0 takes 0.25
        return fields


@cache
def config_class(donor: str) -> Any:
    """The class of configurations of a donor's type: `llama`, ..."""
    try:
        base = CONFIG_MAPPING[donor]
    except KeyError:
        raise ValueError(
            f"the model that was converted is of type {donor!r}, which transformers {transformers.__version__} "
            "does not have: install a newer one"
        ) from None
    return type("ShrinkConfig", (_Converted, base), {"__module__": __name__, "_auto_class": "AutoConfig"})


def restored(donor: str, fields: dict[str, Any]) -> Any:
    """A configuration as another process had it."""
    kind = config_class(donor)
    config = kind.__new__(kind)
    config.__dict__.update(fields)
    return config
