"""Every config, argument and override either makes a complete config or is an InputError."""

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.ours import only_our_errors
from tests.processes import ROOT
from wcjax.config import build, check_config, checks, default_config, keys
from wcjax.config.command_line import read_config_file

CONFIGS = sorted((ROOT / "configs").glob("*.py"))
DEFAULTS = keys.flat_config(default_config())
KEYS = (*DEFAULTS, "reparam", "schedule", "augment", "mesh")
NAMES = (*itertools.chain(*checks.CHOICES.values()), *keys.VARIANTS, "torch")

numbers = st.integers() | st.floats() | st.sampled_from((0, 1, 2, -1, 0.5, 2**31, 2**32, 10**400, 1e-320))
texts = st.sampled_from(NAMES) | st.text(max_size=12)
scalars = numbers | texts | st.none() | st.booleans() | st.binary(max_size=3)
values = st.recursive(scalars, lambda x: st.lists(x, max_size=3) | st.tuples(x) | st.dictionaries(texts, x, max_size=2))
fitting = {bool: st.booleans(), int: st.integers(0, 300), float: st.floats(0, 2), str: st.sampled_from(NAMES)}
fitting |= {tuple: st.lists(st.integers(1, 300), max_size=3).map(tuple)}
settings = st.sampled_from(KEYS).flatmap(
    lambda key: st.tuples(st.just(key), fitting.get(type(DEFAULTS.get(key)), values) | values)
)
odd_names = st.text(max_size=8) | st.integers() | st.none() | st.tuples(st.text(max_size=2))


def nested(flat):
    """{'reparam': {'a': 1}} for {'reparam.a': 1}. If 'reparam' has a value too, the later one counts."""
    config = {}
    for key, value in flat.items():
        outer, _, inner = key.partition(".") if isinstance(key, str) else (key, "", "")
        if inner:
            value = (config[outer] if isinstance(config.get(outer), dict) else {}) | {inner: value}
        config[outer] = value
    return config


@given(st.lists(settings, max_size=4).map(dict), st.just({}) | st.dictionaries(odd_names, values, max_size=1))
def test_a_mapping_becomes_a_config_that_json_keeps(known, odd):
    with only_our_errors():
        config = check_config(nested(known) | odd)
        assert config.keys() == default_config().keys()
        assert check_config(json.loads(json.dumps(config.to_dict()))) == config
        build.make_psi(config)
        build.make_model(config, num_classes=10)


@given(st.sampled_from(CONFIGS), st.lists(texts, max_size=3).map(",".join) | st.text())
def test_an_argument_names_a_network_and_a_variant(file, argument):
    with only_our_errors():
        config = check_config(read_config_file(f"{file}:{argument}"))
        model, _, variant = argument.partition(",")
        assert config.model == model
        assert config.reparam.name == keys.VARIANTS[variant or "wc"]["name"]


odd_literals = st.text(max_size=12) | st.sampled_from(("(" * 300, "-" * 5000 + "1", "[" * 5000, "1e999", "a,b"))
literals = settings.map(lambda setting: (setting[0], str(setting[1]))) | st.tuples(st.sampled_from(KEYS), odd_literals)


@given(st.lists(literals, max_size=3), st.lists(st.text(max_size=8), max_size=1), st.sampled_from(KEYS))
def test_an_override_is_a_value_of_its_key_or_is_refused(overrides, odd_keys, key):
    arguments = [f"--config.{key}={text}" for key, text in overrides]
    arguments += [f"--config.{text}" for text in odd_keys] + [f"--noconfig.{key}"] * len(odd_keys)
    with only_our_errors():
        config = read_config_file(f"{CONFIGS[0]}:resnet18,wc", arguments)
        assert keys.flat_config(config).keys() == DEFAULTS.keys()
        check_config(config)
