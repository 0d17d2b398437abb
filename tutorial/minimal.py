"""Asynchronous, off-policy reinforcement learning of a language model, complete in one file.

    python tutorial/minimal.py                    # learns to spell backwards in less than a minute on one core
    python tutorial/minimal.py --max-lag 0        # synchronous: generation waits for training and the other way round
    python tutorial/minimal.py --max-lag 8        # very stale data

The idea. Generating text is slow, training on it is slow, and each needs the other. So let both run freely:

    prompts --admit(slot)--> generator --group of responses--> shelf --batch--> trainer
                ^               ^                                                 |
                |               +----- published weights, version v = 0, 1, 2, ---+
                +----------------------- slots given back ------------------------+

The generator then works with weights that are a few versions old, and may even get new ones in the middle of a response. Three
measures make that harmless, and they are what this file is about:

    bounded     a prompt is admitted only if a slot is free, and there are so few slots that nothing can become too old;
    recorded    with every token the generator notes its log-probability and the version of the weights that produced it;
    corrected   the trainer weighs each token by how much likelier its own policy makes it (AIPO).

Names carry shapes: B responses, T positions, G groups, K responses of a group, V letters of the alphabet, D width of the model.
Read from top to bottom: task, model, slots, generator, credit and loss, trainer, evaluation. A test compares the numbers with
those of the package, where `Slots` is `store/admission.py`, the loss `algorithms/language/aipo.py`, and the rest has to be
fast, survive crashes, and run on several machines.
"""

import argparse
import asyncio
import itertools
import random
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# --- The task: spell a word backwards. Any task will do for which a program can score the answer.

LETTERS = "abcdefgh"
ALPHABET = LETTERS + "=."
END = ALPHABET.index(".")
LENGTH = 3  # letters of a word; a response is at most one token longer


def encode(text: str) -> list[int]:
    return [ALPHABET.index(letter) for letter in text]


def reward(word: str, response: list[int]) -> float:
    """The share of tokens, the full stop included, that are right: from 0 to 1. The prompt 'fad=' wants the answer 'daf.'."""
    answer = encode(word[::-1] + ".")
    return sum(a == b for a, b in zip(answer, response, strict=False)) / max(len(answer), len(response))


# --- The model: a small causal transformer.
class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x_BTD)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x_BTD = x_BTD + self.out(F.scaled_dot_product_attention(*qkv, is_causal=True).transpose(1, 2).flatten(2))
        return x_BTD + self.mlp(self.norm2(x_BTD))


class Policy(nn.Module):
    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(len(ALPHABET), width), nn.Embedding(2 * LENGTH + 2, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(ALPHABET)))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Log-probabilities of the next token, [B, T, V]. Attention looks back only: padding on the right changes nothing."""
        x_BTD = self.tokens(tokens_BT) + self.positions.weight[: tokens_BT.shape[1]]
        return self.head(self.blocks(x_BTD)).log_softmax(-1)


# --- Slots: how staleness is bounded without throwing anything away.
class Slots:
    """`(max_lag + 1) * groups_per_step` permissions to have a group under way, from its prompt to the update that used it.

    Groups are trained in the order of their admission, P at a time, so group k is trained by version k // P. When it was
    admitted, fewer than (S + 1) P groups were under way, so at least k + 1 - (S + 1) P had been trained and published: the
    generator's version was at least (k + 1) / P - (S + 1), rounded up. The difference, the lag, is at most S.
    """

    def __init__(self, max_lag: int, groups_per_step: int) -> None:
        self.capacity = (max_lag + 1) * groups_per_step
        self.admitted = self.freed = 0

    def admit(self) -> int | None:
        """The number of the new group, or None: wait for the trainer."""
        if self.admitted - self.freed == self.capacity:
            return None
        self.admitted += 1
        return self.admitted - 1

    def free(self, num: int) -> None:
        """Their update is published. Not earlier: a group admitted in between would start on the old weights."""
        self.freed += num


# --- The generator: decodes whatever is running, one token a turn, and swaps weights between turns.
@dataclass
class Response:
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)  # of each token, under the policy that sampled it
    version: list[int] = field(default_factory=list)  # of that policy

    @property
    def finished(self) -> bool:
        return len(self.tokens) > LENGTH or END in self.tokens


class Group(NamedTuple):
    """Several responses to one prompt: each is judged against its siblings."""

    word: str
    responses: list[Response]


def pad(rows: list[list]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


@torch.no_grad()
def decode(policy: Policy, version: int, responses: list[Response], greedy: bool = False) -> None:
    """One more token for each response. Contexts are read anew every time; a real engine caches keys and values, and then has
    to decide what becomes of the cache when weights change."""
    logp_BTV = policy(pad([r.prompt + r.tokens for r in responses]))
    logp_BV = logp_BTV[range(len(responses)), [LENGTH + len(r.tokens) for r in responses]]
    token_B1 = logp_BV.argmax(-1, keepdim=True) if greedy else torch.multinomial(logp_BV.exp(), 1)
    logp_B1 = logp_BV.gather(-1, token_B1)
    for response, token, logp in zip(responses, token_B1[:, 0].tolist(), logp_B1[:, 0].tolist(), strict=True):
        response.tokens.append(token)
        response.logp.append(logp)
        response.version.append(version)


class Run:
    """What generator and trainer share: slots, the shelf of finished groups, and the newest published weights."""

    def __init__(self, args: argparse.Namespace, policy: Policy) -> None:
        self.args, self.slots = args, Slots(args.max_lag, args.groups_per_step)
        self.shelf: dict[int, Group] = {}
        self.lags: list[int] = []  # of every token that was trained on
        self.mixed = 0  # responses that span several versions
        self.publish(0, policy)

    def publish(self, version: int, policy: Policy) -> None:
        """A copy that nobody changes: the trainer's own tensors move while others read."""
        self.version, self.weights = version, {name: tensor.clone() for name, tensor in policy.state_dict().items()}


async def generate(run: Run, words: list[str], rng: random.Random) -> None:
    policy, version, running = Policy(), -1, {}
    while True:
        if run.version > version:
            version = run.version
            policy.load_state_dict(run.weights)
        while (item := run.slots.admit()) is not None:
            word = rng.choice(words)
            running[item] = Group(word, [Response(encode(word + "=")) for _ in range(run.args.group_size)])
        active = [r for group in running.values() for r in group.responses if not r.finished]
        if active:
            decode(policy, version, active)
        for item in [item for item, group in running.items() if all(r.finished for r in group.responses)]:
            run.shelf[item] = running.pop(item)
        await asyncio.sleep(0)  # The trainer's turn. On a cluster the two are machines and nobody waits here.


# --- Credit and loss.
def advantages(reward_GK: Tensor) -> Tensor:
    """How much better each response did than its siblings: the group's mean is the baseline, so no critic is needed."""
    return reward_GK - reward_GK.mean(-1, keepdim=True)


def aipo_loss(logp_BT: Tensor, behaviour_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor, rho: float) -> Tensor:
    """AIPO (LlamaRL, arXiv 2505.24034): the sum over tokens of `-min(pi / mu, rho) A log pi`, the weight held constant.

    Under mu, the policy that sampled, a token appears mu / pi times as often as the current policy pi would have it; the weight
    pi / mu makes up for that. It is cut off at rho: rare tokens that became likely would otherwise drown the rest in noise.
    """
    weight_BT = (logp_BT.detach() - behaviour_BT).exp().clamp(max=rho)
    return -(weight_BT * advantage_BT * logp_BT)[mask_BT].sum()


# --- The trainer.
def response_logp(policy: Policy, responses: list[Response]) -> tuple[Tensor, Tensor, Tensor]:
    """Current and behaviour log-probs of the responses' tokens, padded to [B, T], and which of them are real."""
    tokens_BT, behaviour_BT = pad([r.tokens for r in responses]), pad([r.logp for r in responses])
    mask_BT = pad([[1] * len(r.tokens) for r in responses]).bool()
    # Every prompt is a word and "=": the output at its last position, LENGTH, is the distribution of the first token.
    logp_BTV = policy(pad([r.prompt + r.tokens for r in responses]))[:, LENGTH:-1]
    return logp_BTV.gather(-1, tokens_BT[..., None])[..., 0], behaviour_BT, mask_BT


async def train(run: Run, policy: Policy) -> None:
    args, optimizer = run.args, torch.optim.Adam(policy.parameters(), lr=run.args.lr)
    for version in range(args.steps):
        items = range(version * args.groups_per_step, (version + 1) * args.groups_per_step)
        while not all(item in run.shelf for item in items):
            await asyncio.sleep(0)
        groups = [run.shelf.pop(item) for item in items]
        num_tokens = sum(len(r.tokens) for group in groups for r in group.responses)
        rewards, ratios = [], []
        for part in (groups[0::2], groups[1::2]):
            responses = [r for group in part for r in group.responses]
            reward_GK = torch.tensor([[reward(group.word, r.tokens) for r in group.responses] for group in part])
            logp_BT, behaviour_BT, mask_BT = response_logp(policy, responses)
            advantage_BT = advantages(reward_GK).flatten()[:, None].expand_as(logp_BT)
            # Divided by the tokens of the whole step: how it is cut into micro-batches then changes nothing.
            (aipo_loss(logp_BT, behaviour_BT, advantage_BT, mask_BT, args.rho) / num_tokens).backward()
            rewards.append(reward_GK.mean().item())
            ratios.append((logp_BT.detach() - behaviour_BT)[mask_BT].exp())
            await asyncio.sleep(0)  # The generator goes on while gradients are computed.
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        run.publish(version + 1, policy)
        run.slots.free(args.groups_per_step)
        record(run, version, groups, sum(rewards) / len(rewards), torch.cat(ratios))


def record(run: Run, version: int, groups: list[Group], mean_reward: float, ratio_N: Tensor) -> None:
    """Check the bound on every token, and show what staleness does: the lag, and the effective share of the samples."""
    responses = [r for group in groups for r in group.responses]
    lags = [version - v for r in responses for v in r.version]
    assert max(lags) <= run.args.max_lag, "the slots did not bound the lag"
    run.lags += lags
    run.mixed += sum(len(set(r.version)) > 1 for r in responses)
    if run.args.every and (version + 1) % run.args.every == 0:
        lag, effective = sum(lags) / len(lags), ratio_N.sum() ** 2 / ratio_N.square().sum() / len(ratio_N)
        print(f"step {version + 1:4d}  reward {mean_reward:.3f}  lag {lag:.2f}  effective samples {effective:.0%}")


# --- Evaluation, and putting it together.
def accuracy(policy: Policy, words: list[str]) -> float:
    """Share of words that the most likely response spells backwards without a mistake."""
    responses = [Response(encode(word + "=")) for word in words]
    while active := [r for r in responses if not r.finished]:
        decode(policy, 0, active, greedy=True)
    return sum(reward(word, r.tokens) == 1.0 for word, r in zip(words, responses, strict=True)) / len(words)


async def learn(args: argparse.Namespace) -> tuple[float, float, Run]:
    """Held-out accuracy before and after, and the run."""
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    words = ["".join(letters) for letters in itertools.product(LETTERS, repeat=LENGTH)]
    rng.shuffle(words)
    heldout, words = words[:100], words[100:]
    policy = Policy()
    before, run = accuracy(policy, heldout), Run(args, policy)
    generator = asyncio.create_task(generate(run, words, rng))
    trainer = asyncio.create_task(train(run, policy))
    # Whichever ends first: the trainer because it is done, the generator only if it failed.
    done, _ = await asyncio.wait([generator, trainer], return_when=asyncio.FIRST_COMPLETED)
    generator.cancel()
    for task in done:
        task.result()
    return before, accuracy(policy, heldout), run


def options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200, help="updates, and so versions")
    parser.add_argument("--max-lag", type=int, default=2, help="how many versions old a token may be when it is trained on")
    parser.add_argument("--groups-per-step", type=int, default=8, help="prompts that one update learns from")
    parser.add_argument("--group-size", type=int, default=8, help="responses to one prompt")
    parser.add_argument("--rho", type=float, default=4.0, help="largest importance weight")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=20, help="print every so many steps; 0: never")
    return parser.parse_args(argv)


if __name__ == "__main__":
    torch.set_num_threads(1)
    started = time.time()
    before, after, run = asyncio.run(learn(options()))
    print(f"held-out words spelt backwards: {before:.0%} before, {after:.0%} after, in {time.time() - started:.0f} s")
    print(f"largest lag {max(run.lags)}; responses that span versions: {run.mixed}")
