"""Which operators are called, and which copies to a device this process waits for. `META` stands in for a GPU."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")  # takes the way of a GPU, without numbers


class Calls(TorchDispatchMode):
    """Operators that are called within, and what they copy from the CPU to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.copies: list[torch.Tensor] = []
        self.waits: list[str] = []  # of the copies those that this process waits for
        self.given: dict[int, torch.Tensor] = {}  # the newest numbers that a tensor had from the CPU, by its id

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, options = func.overloadpacket.__name__, kwargs or {}
        self.names.append(name)
        if name in ("copy_", "_to_copy"):
            source = args[1] if name == "copy_" else args[0]
            target = args[0].device if name == "copy_" else torch.device(options.get("device") or source.device)
            if source.device.type == "cpu" and target.type != "cpu":
                self.copies.append(source)
                self.given[id(args[0])] = source.clone()
                asynchronous = options.get("non_blocking") or True in args[2:]
                self.waits += [] if asynchronous else [name]
        return func(*args, **options)
