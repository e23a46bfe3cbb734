"""Settings of a training run: read completely, or refused with the name of the wrong setting."""

import pytest

from dynamicid_core.errors import InputError
from dynamicid_core.training.config import AnchorConfig, ReconfigureConfig, load_config

NEEDED = "data: d\nbase_model: b\nclip_vision: c\noutput: o\n"


def read(tmp_path, text, kind=AnchorConfig):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, kind)


def test_settings_that_are_not_given_have_defaults(tmp_path):
    config = read(tmp_path, NEEDED + "steps: 12\nlearning_rate: 1e-4\nclip_gradients: 2\n")
    assert (config.steps, config.learning_rate, config.clip_gradients) == (12, 1e-4, 2.0)
    assert (config.rank, config.drop_text, config.threshold) == (128, 0.05, 0.0)
    assert config.rates == {}


def test_parts_of_the_network_have_learning_rates_of_their_own(tmp_path):
    rates = {"adapter.face_encoder": 0.05, "adapter.updates": 0.05}
    assert read(tmp_path, NEEDED + "rates:\n  adapter.face_encoder: 0.05\n  adapter.updates: 5e-2\n").rates == rates


def test_reconfiguration_has_the_papers_lambda_and_the_released_sizes(tmp_path):
    config = read(tmp_path, NEEDED + "adapter: a\n", ReconfigureConfig)
    assert (config.diffusion_weight, config.size, config.depth, config.features) == (1.0, 1024, 1, 768)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1e-4", 'There is no setting "lerning_rate"; did you mean learning_rate'),
        ("xyz: 1", 'There is no setting "xyz"; it can be one of output, steps'),
        ("steps: many", "steps is 'many'; it must be of type int"),
        ("steps: true", "steps is True; it must be of type int"),
        ("steps: 0", "steps is 0; it must be at least 1"),
        ("precision: fp8", 'precision is "fp8"; choose fp32 or bf16'),
        ("variant: mine", 'variant is "mine"; choose one of DynamicID'),
        ("ema_decay: 1.0", "ema_decay is 1; it must be from 0 to below 1"),
        ("drop_text: 0.9\ndrop_face: 0.2", "must be 0 or more and add up to at most 1"),
        ("learning_rate: 0", "learning_rate is 0; it must be more than 0"),
        ("clip_gradients: -1", "clip_gradients is -1.0; it must not be negative"),
        ("cooldown_steps: -1", "cooldown_steps is -1; it must not be negative"),
        ("seed: -1", "seed is -1; it must not be negative"),
        ("threshold: 7", "threshold is 7; it must be from 0 to below 1"),
        ("rates: 2", "rates is 2; it must be of type dict"),
        ("rates: {adapter: fast}", "rates has 'fast' for adapter; it must be a number greater than 0"),
        ("rates: {adapter: 0}", "rates has 0 for adapter; it must be a number greater than 0"),
        ("rates: {adapter: .inf}", "rates has inf for adapter; it must be a number greater than 0"),
        ("rates: {1: 0.5}", "rates has 1; it must be a prefix of parameter names"),
        ("learning_rate: .inf", "learning_rate is inf; it must be finite"),
        ("weight_decay: .nan", "weight_decay is nan; it must be finite"),
        ("seed: 9223372036854775808", "seed is 9223372036854775808; it must be less than"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, NEEDED + text)


@pytest.mark.parametrize("share", ["-0.1", "1.5"])
def test_a_share_of_the_batches_is_between_none_and_all(tmp_path, share):
    with pytest.raises(InputError, match=rf"diffusion_share is {share}; it must be from 0 to 1"):
        read(tmp_path, NEEDED + f"adapter: a\ndiffusion_share: {share}", ReconfigureConfig)


def test_a_missing_setting_is_named(tmp_path):
    with pytest.raises(InputError, match=r"The setting output is missing \(.*run\.yaml\)"):
        read(tmp_path, NEEDED.replace("output: o\n", ""))


def test_what_is_no_list_of_settings_is_refused(tmp_path):
    with pytest.raises(InputError, match="must hold lines such as steps: 1000; found str"):
        read(tmp_path, "steps")
    with pytest.raises(InputError, match="is not a YAML file"):
        read(tmp_path, "a: [1")
    with pytest.raises(InputError, match="There is no config file"):
        load_config(tmp_path / "none.yaml", AnchorConfig)


@pytest.mark.parametrize("text", ["steps: 2020-13-45", "rates: " + "[" * 5000], ids=["no date", "nested"])
def test_yaml_that_breaks_its_reader_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="is not a YAML file"):
        read(tmp_path, NEEDED + text)
