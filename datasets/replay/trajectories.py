"""What the current policy has collected since its last update, for agents that train on nothing else."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from datasets.batch import Decisions, Trajectories

# Of a step; chunk_end: its action is the last of a chunk that is executed.
FIELDS = ("obs", "reward", "terminated", "episode_end", "chunk_end", "next_obs")


class TrajectoryStore:
    """T steps in each of E environments of each seed; row n is step n // E of environment n % E.

    Everything lies on the CPU but what `sample` reads, whose tensors stay in place for captured updates.
    """

    on_device = True  # `sample` is pure tensor code on the training device

    def __init__(
        self, num_seeds: int, num_envs: int, num_steps: int, obs_dim: int, discount: float, device: torch.device
    ):
        """
        Args:
            num_steps: T, environment steps of each environment between two updates.
            discount: per environment step.
        """
        self.num_envs, self.num_rows = num_envs, num_steps * num_envs
        self.count = 0  # rows appended
        self._discount, self._device = discount, device
        self._widths = [obs_dim, 1, 1, 1, 1, obs_dim]  # of FIELDS
        self._steps = torch.zeros(num_seeds, self.num_rows, sum(self._widths))
        self._begins = torch.zeros(num_seeds, self.num_rows)
        self._records: Tensor | None = None  # (S, T * E, W), once W is known
        self._sampled: Decisions | None = None  # all decisions of each seed, its own first
        self._num_decisions = torch.zeros(num_seeds, 1, dtype=torch.float64, device=device)

    @property
    def is_full(self) -> bool:
        return self.count == self.num_rows

    def decide(self, begins: Tensor, record: Tensor) -> None:
        """Notes the decisions at the next step of all environments.

        Args:
            begins: (S, E), 1 where a new chunk begins.
            record: (S, E, W) of each decision.
        """
        if self._records is None:
            self._records = torch.zeros(*self._begins.shape, record.shape[-1])
        rows = slice(self.count, self.count + self.num_envs)
        self._begins[:, rows] = begins
        self._records[:, rows] = record

    def append(self, rows: Mapping[str, Tensor]) -> None:
        """Adds one transition per seed, of environment `count` % E: FIELDS, each (S, …), on the CPU."""
        columns = [rows[name].reshape(len(self._steps), -1) for name in FIELDS]
        self._steps[:, self.count] = torch.cat(columns, -1)
        self.count += 1

    def trajectories(self) -> Trajectories:
        """All rows, with what followed each decision; on the training device."""
        assert self._records is not None and self.is_full
        grid = self._steps.unflatten(1, (-1, self.num_envs))
        fields: dict[str, Tensor] = dict(zip(FIELDS, grid.split(self._widths, -1), strict=True))
        begins = self._begins.unflatten(1, (-1, self.num_envs))
        decisions = _decisions(begins, fields, self._discount)
        record = self._records.unflatten(1, (-1, self.num_envs))
        values = {"obs": fields["obs"], "record": record, **decisions}
        return Trajectories(**{name: value.to(self._device) for name, value in values.items()})

    def offer(self, trajectories: Trajectories, advantage: Tensor, value_target: Tensor) -> None:
        """Makes the decisions available to `sample`, with estimates (S, T, E), and begins to collect anew."""
        begins = trajectories.begins.flatten(1)
        order = begins.argsort(dim=1, descending=True, stable=True)  # decisions first, in order of time
        values = {
            "obs": trajectories.obs.flatten(1, 2),
            "record": trajectories.record.flatten(1, 2),
            "advantage": advantage.flatten(1),
            "value_target": value_target.flatten(1),
        }
        sorted_values = Decisions(**{name: _gather(value, order) for name, value in values.items()})
        if self._sampled is None:
            self._sampled = sorted_values
        else:
            for name in values:
                getattr(self._sampled, name).copy_(getattr(sorted_values, name))
        self._num_decisions.copy_(begins.sum(1, keepdim=True))
        self.count = 0
        self._begins.zero_()  # steps of the next rollout at which nothing is decided must not seem to begin a decision

    def sample(self, fractions: Tensor) -> Decisions:
        """Decisions at these places, float64 (S, B) in [0, 1), among those of each seed that were offered last."""
        assert self._sampled is not None, "offer decisions first"
        index = (fractions * self._num_decisions).long()
        values = vars(self._sampled)
        return Decisions(**{name: _gather(value, index) for name, value in values.items()})

    def rows_of_seed(self, seed_index: int) -> dict[str, Tensor]:
        """What a checkpoint holds of one seed: the rows so far, and the decisions of the step under way."""
        stop = min(-(-self.count // self.num_envs) * self.num_envs, self.num_rows)
        records = self._records if self._records is not None else self._begins.new_zeros(*self._begins.shape, 0)
        held = {"steps": self._steps[:, : self.count], "begins": self._begins[:, :stop], "records": records[:, :stop]}
        return {name: value[seed_index].clone() for name, value in held.items()}

    def restore(self, rows: Sequence[Mapping[str, Tensor]]) -> None:
        """Puts back what `rows_of_seed` gave for each seed. ValueError where they differ in length."""
        if len({len(seed_rows["steps"]) for seed_rows in rows}) != 1:
            raise ValueError("seeds of one pack must have collected the same number of steps")
        self.count = len(rows[0]["steps"])
        if not self.count:
            return
        width = rows[0]["records"].shape[-1]
        self._records = torch.zeros(*self._begins.shape, width)
        for seed_index, seed_rows in enumerate(rows):
            self._steps[seed_index, : self.count] = seed_rows["steps"]
            self._begins[seed_index, : len(seed_rows["begins"])] = seed_rows["begins"]
            self._records[seed_index, : len(seed_rows["records"])] = seed_rows["records"]


def _decisions(begins: Tensor, fields: Mapping[str, Tensor], discount: float) -> dict[str, Tensor]:
    """Return, bootstrap, next observation and continuation of the decisions that begin at each step.

    Args:
        begins: (S, T, E).
        fields: FIELDS, each (S, T, E, …).
    """
    reward, terminated, episode_end, chunk_end = (fields[name].squeeze(-1) for name in FIELDS[1:5])
    num_steps = reward.shape[1]
    chunk_return, end = torch.zeros_like(reward), torch.zeros_like(reward)
    rest, last = torch.zeros_like(reward[:, 0]), torch.full_like(reward[:, 0], num_steps)  # num_steps: not in here
    for t in reversed(range(num_steps)):
        rest = reward[:, t] + discount * torch.where(chunk_end[:, t] > 0, 0.0, rest)
        last = torch.where(chunk_end[:, t] > 0, float(t), last)
        chunk_return[:, t], end[:, t] = rest, last
    complete = (end < num_steps).float()
    end = end.long().clamp(max=num_steps - 1)
    length = end - torch.arange(num_steps)[:, None] + 1
    following = torch.cat([begins * complete, torch.zeros_like(begins[:, :1])], 1)
    return {
        "begins": begins * complete,
        "chunk_return": chunk_return,
        "bootstrap": discount**length * (1 - terminated.gather(1, end)),
        "next_obs": _gather(fields["next_obs"], end),
        "continues": (1 - episode_end.gather(1, end)) * following.gather(1, end + 1),
    }


def _gather(value: Tensor, index: Tensor) -> Tensor:
    """value (S, T, …) at places index (S, M, …) of its second dimension."""
    missing = value.dim() - index.dim()
    shape = (*index.shape, *value.shape[index.dim() :])
    return value.gather(1, index.view(*index.shape, *[1] * missing).expand(shape))
