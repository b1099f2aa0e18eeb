"""The study's document: what overrides reach, what is refused by name, and the experiment a trial makes of it."""

import pytest
import yaml
from tiny_study import tiny_plan, write_study

from videoblip2.config import InputError
from videoblip2.tune.plan import kind_of, load_plan

LR = {"low": 0.001, "high": 0.1, "log": True}


def test_overrides_reach_the_study_and_the_experiment(tmp_path):
    plan = tiny_plan(tmp_path, "n_trials=7", "train.steps=50", "sampler.seed=3", config={"train": {"batch_size": 9}})
    assert (plan.tuning.n_trials, plan.tuning.sampler.seed) == (7, 3)
    assert (plan.base.train.steps, plan.base.train.batch_size, plan.base.optim.lr) == (50, 9, 0.01)


def test_a_trial_is_the_base_with_its_values(tmp_path):
    search = {
        "optim.lr": LR,
        "optim.betas": {"choices": [[0.9, 0.98], [0.8, 0.9]]},
        "scst.baseline": {"choices": ["greedy", "none"]},
    }
    plan = tiny_plan(tmp_path, search=search)
    assert plan.defaults == {"optim.lr": 0.01, "optim.betas": "[0.9, 0.98]", "scst.baseline": "greedy"}
    config = plan.config_of({"optim.lr": 1.5e-05, "optim.betas": "[0.8, 0.9]", "scst.baseline": "none"}, "run.name=x")
    assert (config.optim.lr, config.optim.betas, config.scst.baseline) == (1.5e-05, (0.8, 0.9), "none")
    assert (config.run.name, config.train.steps) == ("x", 4)
    assert "name" not in plan.content_of({"optim.lr": 1.0}).get("run", {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_trails": 3}, "unknown key 'n_trails'; did you mean 'n_trials'"),
        ({"n_trials": 0}, "n_trials=0"),
        ({"stage": "cee"}, "stage='cee'"),
        ({"study": "a/b"}, "study='a/b'"),
        ({"stage": None}, "stage: is missing"),
        ({"base": None}, "give `base`"),
        ({"tuned_model": "m"}, "not `tuned_model`"),
        ({"stage": "decode"}, "give `tuned_model`"),
        ({"search": {"optim.lrr": LR}}, "unknown key 'optim.lrr'; did you mean 'optim.lr'"),
        ({"search": {"run.name": {"choices": ["a"]}}}, "run.name: must be the same in all trials"),
        ({"search": {"data.annotations": {"choices": ["a"]}}}, "data.annotations: must be the same in all trials"),
        ({"search": {"data.task": {"choices": ["caption", "mixed"]}}}, "data.task: must be the same in all trials"),
        ({"search": {"optim.lr": {"low": 0.1, "high": 0.001}}}, "optim.lr: low=0.1, high=0.001; give low < high"),
        (
            {"search": {"optim.lr": {"low": 0.0, "high": 1.0, "log": True}}},
            "`low > 0` must hold for `log=True`",
        ),
        ({"search": {"optim.lr": {"low": 0.1, "choices": [1]}}}, "`choices`, or `low` and `high`, not both"),
        ({"search": {"scst.baseline": {"low": 0, "high": 1}}}, "scst.baseline: not a number; give `choices"),
        ({"search": {"train.steps": {"low": 1.5, "high": 9}}}, "train.steps: must be whole numbers"),
        ({"search": {"optim.lr": {"low": 0.1, "high": 1.0}}}, "the default 0.01 is not in 0.1..1"),
        ({"search": {"train.label_smoothing": {"low": 0.0, "high": 1.5}}}, "train.label_smoothing=1.5"),
        ({"search": {"scst.baseline": {"choices": ["greedy", "none", "nothing"]}}}, "scst.baseline='nothing'"),
        ({"search": {}}, "search="),
    ],
)
def test_a_mistake_is_named(tmp_path, changes, message):
    with pytest.raises(InputError) as error:
        tiny_plan(tmp_path, **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_test_split_cannot_be_named(tmp_path):
    for changes in (
        {"config": {"data": {"train": "test.json"}}},
        {"search": {"data.train": {"choices": ["train.json", "test.json"]}}},
    ):
        with pytest.raises(InputError, match=r"test\.json; a study may use only train and val"):
            tiny_plan(tmp_path, **changes)


def test_types_come_from_the_configuration(tmp_path):
    assert kind_of("train.steps") is int
    assert kind_of("optim.weight_decay") is float
    assert kind_of("scst.log_prob_tolerance") is float  # an optional one
    assert kind_of("scst.end_token") is None
    assert kind_of("model.qformer.num_queries") is int
    path = write_study(tmp_path)
    (tmp_path / "val.json").write_text("[]")
    text = yaml.safe_dump({**yaml.safe_load(path.read_text()), "search": None}).replace(
        "search: null", "search: {optim.lr: {low: 1e-4, high: 1e-1}}"
    )
    path.write_text(text)  # YAML 1.1 reads 1e-4 as a string
    assert load_plan(path).tuning.search["optim.lr"].low == 1e-4


@pytest.mark.parametrize(
    ("values", "inside", "outside"),
    [
        ({"low": 1, "high": 9, "step": 2}, ("train.steps", (1, 7, 9)), (2, 10)),
        ({"low": 0.0, "high": 0.3, "step": 0.1}, ("train.label_smoothing", (0.0, 0.1, 0.3)), (0.15, 0.4)),
        ({"choices": [[0.5, 0.9], [0.1, 0.2]]}, ("optim.betas", ([0.5, 0.9], [0.1, 0.2])), ([0.9, 0.5],)),
        ({"choices": ["runs/a", None]}, ("train.start_from", ("runs/a", None)), ("runs/b",)),
    ],
)
def test_the_default_must_be_a_value_of_the_range(tmp_path, values, inside, outside):
    key, wanted = inside
    section, name = key.split(".")
    for value in wanted:
        tiny_plan(tmp_path, search={key: values}, config={section: {name: value}})
    for value in outside:
        with pytest.raises(InputError, match=rf"{key}: the default .* is not in .*; widen the range"):
            tiny_plan(tmp_path, search={key: values}, config={section: {name: value}})
