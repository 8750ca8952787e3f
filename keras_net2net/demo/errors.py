"""What the demonstration says, in one line, when it can't go on."""

import importlib.util


class DemoError(Exception):
    """A mistake in what was asked for, told in one line to a person at a terminal."""


def require(*packages: str) -> None:
    """Says which packages of the `demo` extra are missing, before any time is spent on training.

    Raises:
        DemoError: if one of `packages` can't be imported.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoError(
            f"this demonstration needs {' and '.join(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not installed; "
            'install the demo extra: pip install -e ".[demo]"'
        )
