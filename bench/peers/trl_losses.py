"""Losses, gradients and advantages as TRL computes them, for comparison with ours (`make test-peers`).

    make bench-peers-env
    .venv-peers/bin/python bench/peers/trl_losses.py OUT

Each case makes TRL's own trainer from TRL's own config. For the online methods it samples responses and scores them, so masks
and advantages are TRL's; then its loss is called with a table of log-probs in place of the network, float64 and random, which
gives the gradient per token. Writes OUT.safetensors (`<case>/<tensor>`) and OUT.json (versions, and what was asked of TRL).
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import tiny_job
import torch
import transformers
import trl
from safetensors.torch import save_file
from torch import Tensor, nn

GROUPS, SIZE = 3, 4
TOKENS = tiny_job.COMPLETION_TOKENS
SHARED = {
    **tiny_job.QUIET,
    "max_steps": 1,
    "model_init_kwargs": {"dtype": "float32"},
}
SAMPLED = {**SHARED, "per_device_train_batch_size": GROUPS * SIZE, "num_generations": SIZE, "max_completion_length": TOKENS}
GRPO = {
    "grpo": {"loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.2, "beta": 0.04, "use_bias_correction_kl": False},
    "grpo_weighted_kl": {"loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.2, "beta": 0.04},
    "drgrpo": {"loss_type": "dr_grpo", "scale_rewards": "none", "epsilon": 0.2, "epsilon_high": 0.2, "beta": 0.0},
    "dapo": {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0},
    "gspo": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon": 0.005,
        "epsilon_high": 0.007,
        "beta": 0.0,
    },
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.3, "beta": 0.0},
}
RLOO = {"beta": 0.05, "epsilon": 0.2, "epsilon_high": 0.2}
DPO = {"beta": 0.1, "loss_type": ["sigmoid"]}


class Table(nn.Module):
    """Stands for a network: whatever it is asked, its log-probs are `logp`, which TRL's own forward makes 0 where there is no
    label."""

    def __init__(self, logp: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.logp = nn.Parameter(logp.double())
        self._mask = mask.bool()

    def forward(self, **_: Any) -> SimpleNamespace:
        zeros = torch.zeros_like(self.logp)
        return SimpleNamespace(
            log_probs=torch.where(self._mask, self.logp, zeros),
            entropy=zeros,
            mean_logits=zeros,
            is_top1=self._mask,
            label_mask=self._mask,
            aux_loss=None,
        )


def noise(*shape: int, seed: int, scale: float) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores(completions: list[str], **_: object) -> list[float]:
    """Rewards that differ inside a group and between groups."""
    draw = torch.rand(len(completions), generator=torch.Generator().manual_seed(7))
    return [round(float(value), 3) for value in draw]


def rows(count: int) -> list[dict[str, str]]:
    return [{"prompt": prompt} for prompt in tiny_job.prompts(count, seed=0)]


def sampled(kind: type, config: Any, folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """A trainer that has sampled and scored one batch, and that batch."""
    trainer = kind(
        model=str(folder),
        reward_funcs=scores,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows(GROUPS)),
        processing_class=tiny_job.tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    if trainer.ref_model is not None:
        for index, parameter in enumerate(trainer.ref_model.parameters()):
            # A reference that is the policy would have no KL.
            parameter.data += noise(*parameter.shape, seed=index, scale=0.02).float()
    torch.manual_seed(3)
    batch = trainer._generate_and_score_completions([row for row in rows(GROUPS) for _ in range(SIZE)])
    return trainer, batch


def known(batch: dict[str, Tensor], spread: float) -> dict[str, Tensor]:
    """The columns that a loss reads: masks and advantages from TRL, log-probs of three policies that lie near each other."""
    mask = batch["completion_mask"].bool()
    logp = -noise(*mask.shape, seed=1, scale=1.0).abs()
    return {
        "mask": mask,
        "advantage": batch["advantages"].double(),
        "reward": torch.tensor(scores([""] * len(mask)), dtype=torch.float64),
        "logp": logp,
        "logp_behaviour": logp + noise(*mask.shape, seed=2, scale=spread),
        "logp_reference": logp + noise(*mask.shape, seed=4, scale=0.3),
    }


def differentiated(loss: Tensor, table: Table) -> dict[str, Tensor]:
    (gradient,) = torch.autograd.grad(loss, table.logp)
    return {"loss": loss.detach().double(), "gradient": gradient}


def grpo_case(name: str, scratch: Path, folder: Path) -> dict[str, Tensor]:
    config = trl.GRPOConfig(output_dir=str(scratch / name), **SAMPLED, **GRPO[name])
    trainer, batch = sampled(trl.GRPOTrainer, config, folder)
    found = known(batch, spread=0.03 if name == "gspo" else 0.3)
    table = Table(found["logp"], found["mask"])
    inputs = {
        **batch,
        "advantages": found["advantage"],
        "old_per_token_logps": found["logp_behaviour"],
        "ref_per_token_logps": found["logp_reference"],
    }
    return found | differentiated(trainer._compute_loss(table, inputs), table)


def rloo_case(scratch: Path, folder: Path) -> dict[str, Tensor]:
    config = trl.RLOOConfig(output_dir=str(scratch / "rloo"), **SAMPLED, **RLOO)
    seen: list[Tensor] = []
    method = trl.RLOOTrainer._get_per_token_logps_and_entropies

    def recorded(self: Any, *arguments: Any, **options: Any) -> Any:
        found = method(self, *arguments, **options)
        seen.append(found[0].detach().double())
        return found

    trl.RLOOTrainer._get_per_token_logps_and_entropies = recorded
    try:
        trainer, batch = sampled(trl.RLOOTrainer, config, folder)
    finally:
        trl.RLOOTrainer._get_per_token_logps_and_entropies = method
    old, reference = seen
    found = known(batch, spread=0.0)
    found["logp_behaviour"], found["logp_reference"] = old, reference
    found["logp"] = old + noise(*old.shape, seed=5, scale=0.1)
    table = Table(found["logp"], found["mask"])
    inputs = {**batch, "advantages": found["advantage"], "old_logps": (old * found["mask"]).sum(1)}
    return found | differentiated(trainer._compute_loss(table, inputs), table)


def dpo_case(scratch: Path, folder: Path) -> dict[str, Tensor]:
    pairs = [{"prompt": "1+1=", "chosen": "2", "rejected": "345"}, {"prompt": "2+3=", "chosen": "50", "rejected": "6"}]
    trainer = trl.DPOTrainer(
        model=str(folder),
        args=trl.DPOConfig(output_dir=str(scratch / "dpo"), per_device_train_batch_size=2, **SHARED, **DPO),
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=tiny_job.tokenizer(),
    )
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    mask = batch["completion_mask"][:, 1:].bool()
    logp = -noise(*mask.shape, seed=1, scale=1.0).abs()
    reference = logp + noise(*mask.shape, seed=2, scale=1.0)
    table, trainer.ref_model = Table(logp, mask), Table(reference, mask)
    found = {"mask": mask, "logp": logp, "logp_reference": reference}
    return found | differentiated(trainer._compute_loss(table, batch, False), table)


def sft_case(scratch: Path, folder: Path) -> dict[str, Tensor]:
    trainer = trl.SFTTrainer(
        model=str(folder),
        args=trl.SFTConfig(output_dir=str(scratch / "sft"), per_device_train_batch_size=2, **SHARED),
        train_dataset=datasets.Dataset.from_list(
            [{"prompt": "1+1=", "completion": "2"}, {"prompt": "2+3=", "completion": "5678"}]
        ),
        processing_class=tiny_job.tokenizer(),
    )
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    mask = batch["labels"][:, 1:] != -100
    logp = -noise(*mask.shape, seed=1, scale=1.0).abs()
    table = Table(logp, mask)
    return {"mask": mask, "logp": logp} | differentiated(trainer.compute_loss(table, dict(batch)), table)


def cases(scratch: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    folder = scratch / "model"
    tiny_job.save(folder, seed=0)
    for name in GRPO:
        yield name, grpo_case(name, scratch, folder)
    yield "rloo", rloo_case(scratch, folder)
    yield "dpo", dpo_case(scratch, folder)
    yield "sft", sft_case(scratch, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="path of the two files, without their endings")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        tensors = {f"{case}/{name}": t.contiguous() for case, found in cases(Path(scratch)) for name, t in found.items()}
    save_file(tensors, out.with_suffix(".safetensors"))
    about = {
        "versions": {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "asked": {**GRPO, "rloo": RLOO, "dpo": DPO, "sft": {}},
        "group_size": SIZE,
        "max_completion_length": TOKENS,
    }
    out.with_suffix(".json").write_text(json.dumps(about, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
