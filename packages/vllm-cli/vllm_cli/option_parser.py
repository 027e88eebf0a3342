"""How ``vllm`` reads the options of a command: a mistake is one line that names the option and what is near."""

import argparse
import difflib
from typing import Any, NoReturn


class OptionParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are one line on stderr, with exit code 2.

    The usage, thirty lines long for ``vllm serve``, stays in the help; an unknown option comes with the nearest one.
    """

    def error(self, message: str) -> NoReturn:
        """End the program with ``message``."""
        message = message.removeprefix("argument ").rstrip(".")
        self.exit(2, f"{self.prog}: error: {message} (`{self.prog} --help` lists the options)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in ``argparse``, but what is not known is an error here, in the parser whose options are the near ones."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown))
        return parsed, unknown

    def _unknown(self, arguments: list[str]) -> str:
        option = next((argument.partition("=")[0] for argument in arguments if argument.startswith("-")), None)
        if option is None:
            return f"{arguments[0]!r} is one argument too many"
        known = [text for action in self._actions for text in action.option_strings]
        near = difflib.get_close_matches(option.replace("_", "-"), known, n=1, cutoff=0.75)
        return f"there is no option {option}" + (f"; did you mean {near[0]}?" if near else "")
