"""Which of somebody else's reasonings are imitated decides what a policy learns to see."""

import asyncio
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from freerun.algorithms.language import sophia
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.tiny import Kept
from freerun.launch import launch
from freerun.recipes import tiny_sophia
from freerun.recipes.base import PlacementConfig, RunConfig
from freerun.rewards.pool import RewardConfig
from freerun.tasks import authors, reports, scenes


def config(selection: sophia.Selection, seed: int) -> RunConfig:
    """The recipe with another rule and seed, in float32, in one process and a fixed order."""
    recipe = tiny_sophia.recipe()
    trainer = replace(recipe.trainer, dtype="float32")
    generator = replace(recipe.generator, dtype="float32")
    policy = authors.Author(
        model=recipe.model,
        warm_start=recipe.warm_start,
        sampling=recipe.sampling,
        trainer=trainer,
        generator=generator,
        seed=seed,
    )
    return replace(
        recipe,
        task=scenes.Config(seed=seed),
        offline=reports.Collected(author=policy, reasoner=scenes.Reasoner(), selection=selection, seed=seed),
        control=replace(recipe.control, eval_every=0),
        trainer=trainer,
        generator=generator,
        reward=RewardConfig(threads=False),
        placement=PlacementConfig(kind="inline", schedule="serial", threads=1),
        seed=seed,
    )


def arm(**rules: bool) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        chosen, kept = config(sophia.Selection(**rules), seed), Kept()
        task = chosen.task.build()
        assert chosen.offline is not None
        data = chosen.offline.build(task)
        read = [task.reward("", example.responses[0], example.prompt.meta).parts["read"] == 1.0 for example in data]
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(launch(chosen, Path(folder), kept, checkpoint_at_end=False))
        return {
            "accuracy": kept.accuracies[-1],
            "start": kept.accuracies[0],
            "examples": len(data),
            "read rightly": sum(read) / len(read),
        }

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "A small model that is to answer questions about scenes which it has only learnt to report ends with a higher "
            "held-out accuracy (by 0.05 at least) if it imitates the shortest right response from a report that is right more "
            "than three times in four, than if any right response will do, or any response at all."
        ),
        paper="SOPHIA (arXiv 2507.16814): the selection rules in its ablation",
        method=sophia,
        arms={
            "all rules": arm(),
            "not the shortest": arm(shortest=False),
            "right answers": arm(report=False, shortest=False),
            "random": arm(report=False, correct=False, shortest=False),
        },
        metric="accuracy",
        expected=(
            Expectation(better="all rules", worse="right answers", margin=0.05),
            Expectation(better="all rules", worse="random", margin=0.05),
        ),
        minutes=5.0,
        tried=(
            "The answer is one of two, so half of all guesses are right; with many possible answers luck is rare, and right "
            "answers alone say more about the report. All arms get the 300 steps of the recipe; after 150 (one seed) none had "
            "learnt to conclude (0.45 to 0.57). Random choice is fine-tuning on whatever the reasoner wrote."
        ),
    )
