"""From exceptions to one clear line and the documented exit code."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import click

from onnxcompress.errors import OnnxCompressError

INTERRUPTED = 130
INTERNAL = 70


def exit_code_of(call: Callable[[], Any]) -> int:
    """Run `call`; report what goes wrong on standard error in one line; return the exit code."""
    # A termination request unwinds like Ctrl-C, so that temporary files are removed.
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        value = call()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted")
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx is not None else ""
        _say(" ".join(error.format_message().split()) + hint)
        return 2
    except click.ClickException as error:
        _say(error.format_message())
        return error.exit_code
    except OnnxCompressError as error:
        _say(str(error))
        return error.exit_code
    except (BrokenPipeError, SystemExit):
        # Whoever read our output has gone (click answers that with an exit of its own).
        return 6
    except MemoryError:
        _say("out of memory: use fewer samples, a smaller --batch, or a machine with more")
        return INTERNAL
    except Exception as error:
        if os.environ.get("ONNXCOMPRESS_TRACEBACK"):
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        _say(f"internal error, please report it: {text} (ONNXCOMPRESS_TRACEBACK=1 shows where)")
        return INTERNAL
    finally:
        signal.signal(signal.SIGTERM, previous)
    return int(value) if isinstance(value, int) else 0


def _say(message: str) -> None:
    click.echo(f"onnxcompress: error: {message}", err=True)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
