"""The command line as a stranger meets it: what it prints, and what it says to bad input."""

import json

import pytest

from freerun import cli
from freerun import config as configs
from freerun.errors import ConfigError
from freerun.recipes import base as recipes


def told(capsys, *words):
    """Exit status and everything printed by `freerun *words`."""
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    captured = capsys.readouterr()
    return stop.value.code, captured.out + captured.err


def test_list_shows_every_recipe_with_what_it_shows(capsys):
    code, text = told(capsys, "list")
    assert code == 0
    assert all(name in text for name in recipes.names())
    assert {"tiny-addition", "smollm2-arithmetic"} <= set(recipes.names())


def test_help_of_a_recipe_lists_every_key_with_its_value(capsys):
    code, text = told(capsys, "run", "tiny-addition", "--help")
    keys = configs.flatten(recipes.load("tiny-addition").recipe())
    assert code == 0
    assert all(key in text for key in keys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "tiny-adition"], "tiny-addition"),
        (["run"], "freerun list"),
        (["run", "no/such/file.py"], "recipe file not found"),
        (["run", "tiny-addition", "--trainer.lrr", "1"], "trainer.lr"),
        (["run", "tiny-addition", "--trainer.lr", "fast"], "expected: float"),
        (["run", "tiny-addition", "--trainer.packing", "heap"], "tree, rows"),
        (["run", "tiny-addition", "--trainer.lr"], "give every key a value"),
        (["run", "tiny-addition", "stray"], "--dotted.key value"),
        (["resume", "no/such/dir"], "not a run directory"),
        (["eval", "no/such/dir"], "not a run directory"),
        (["eval"], "or --suite d4rl-mini"),
        (["eval", "no/such/dir", "--seeds", "2"], "a run directory"),
        (["eval", "no/such/dir", "--suite", "d4rl-mini"], "a run directory"),
        (["eval", "--suite", "d4rl"], "d4rl-mini"),
        (["eval", "--suite", "d4rl-mini", "--methods", "sac"], "td3_bc"),
        (["eval", "--suite", "d4rl-mini", "--envs", "ant"], "pendulum"),
        (["eval", "--suite", "d4rl-mini", "--grades", "good"], "medium-replay"),
        (["eval", "--suite", "d4rl-mini", "--seeds", "0"], "at least one seed"),
        (["report", "no/such/dir"], "given"),
        (["resume", "no/such/dir", "--trainer.lr", "1"], "no further arguments"),
    ],
)
def test_bad_input_gets_one_error_in_four_parts(words, said, capsys):
    code, text = told(capsys, *words)
    assert code == 1
    assert said in text
    assert text.count("to do:") == 1
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("tiny-addition --control.steps 0", "control.steps is too small"),
        ("tiny-addition --control.publish-every 3", "publish_every <= max_lag + 1"),
        ("tiny-addition --control.group-size 1", "compares siblings"),
        ("tiny-addition --task.digits 0", "digits"),
        ("tiny-addition --placement.generators 0", "generators >= 1"),
        ("tiny-addition --placement.kind inline --weights.transport monarch", "placement monarch"),
        ("pendulum-sac --control.chunk 0", "chunk, chunks and window >= 1"),
        ("pendulum-sac --control.call-deadline 0", "call_deadline, stall_deadline > 0"),
        ("pendulum-sac --trainer.betas 0.9", "such as 0.9,0.999"),
        ("pendulum-sac --algorithm.gamma 2", "gamma"),
        ("pendulum-sac --env.id Nowhere-v0", "Nowhere"),
        ("pendulum-sac --env.id CartPole-v1", "discrete actions"),
        ("pendulum-sac --actors 0", "actors >= 1"),
        ("pendulum-sac --scores 1,0", "the second is higher"),
        ("pendulum-fedfix --control.chunks 2", "cannot be federated"),
    ],
)
def test_a_config_that_cannot_work_is_refused_before_anything_is_written(words, said, tmp_path, capsys):
    code, text = told(capsys, "run", *words.split(), "--dir", str(tmp_path / "run"))
    assert code == 1
    assert said in text
    assert text.count("to do:") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_whose_every_checkpoint_is_damaged_cannot_be_resumed(tmp_path, capsys):
    config = configs.dump(recipes.load("tiny-addition").recipe())
    (tmp_path / "config.json").write_text(json.dumps({"recipe": "tiny-addition", "overrides": {}, "config": config}))
    (tmp_path / "checkpoints" / "step-00000003").mkdir(parents=True)
    code, text = told(capsys, "resume", str(tmp_path))
    assert code == 1
    assert "no usable checkpoint" in text


def test_a_directory_of_another_config_is_not_resumed(tmp_path, capsys):
    config = configs.dump(recipes.load("tiny-addition").recipe())
    config["trainer"]["lr"] = 123.0
    (tmp_path / "config.json").write_text(json.dumps({"recipe": "tiny-addition", "overrides": {}, "config": config}))
    code, text = told(capsys, "resume", str(tmp_path))
    assert code == 1
    assert "trainer.lr" in text


def test_what_is_for_language_models_is_refused_for_runs_of_environments(tmp_path, capsys):
    config = configs.dump(recipes.load("cartpole-ppo").recipe())
    (tmp_path / "config.json").write_text(json.dumps({"recipe": "cartpole-ppo", "overrides": {}, "config": config}))
    for words in (["scale", str(tmp_path), "--actors", "2"], ["chaos", "cartpole-ppo", "--dir", str(tmp_path / "chaos")]):
        code, text = told(capsys, *words)
        assert code == 1
        assert "language model" in text
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_recipe_may_be_a_file_of_the_users_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text('"""Mine."""\nfrom freerun.recipes.tiny_addition import recipe\n')
    assert recipes.load(str(file)).recipe() == recipes.load("tiny-addition").recipe()


def test_a_file_without_a_recipe_is_refused(tmp_path):
    file = tmp_path / "empty.py"
    file.write_text("x = 1\n")
    with pytest.raises(ConfigError, match="not a recipe"):
        recipes.load(str(file))


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_builds_and_survives_its_dump(name):
    config = recipes.load(name).recipe()
    assert json.loads(configs.dumps(config)) == configs.dump(config)
    assert configs.override(config, {"seed": "7"}).seed == 7


def test_overrides_are_read_with_and_without_an_equals_sign():
    assert configs.read_overrides(["--a.b", "1", "--c-d=x=y", "--e", "-3"]) == {"a.b": "1", "c_d": "x=y", "e": "-3"}
