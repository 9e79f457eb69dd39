"""Run a Pulumi program for `language_host.py`, in the program's directory; the request comes on standard input.

This is a separate file because the program has its own interpreter, which may not have this package.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import runpy
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pulumi
from pulumi.runtime.proto import language_pb2

TOLD = 32
"""The exit status after the user has been told what is wrong."""


def main() -> int:
    """Run the program and return the status for the language host."""
    request = language_pb2.RunRequest.FromString(sys.stdin.buffer.read())
    parallel = max(request.parallel, 1)
    pulumi.runtime.configure(
        pulumi.runtime.Settings(
            monitor=request.monitor_address,
            engine=sys.argv[1],
            project=request.project,
            stack=request.stack,
            parallel=parallel,
            dry_run=request.dryRun,
            organization=request.organization,
            root_directory=request.info.root_directory,
        )
    )
    pulumi.runtime.set_all_config(dict(request.config), list(request.configSecretKeys))
    # When a resource fails, whatever waits for it is never awaited, and asyncio would complain about each of them.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    # As many threads as Pulumi's own executor has: each waits for one call to the engine.
    loop.set_default_executor(ThreadPoolExecutor(parallel * 4))
    program = Path(request.info.program_directory, request.info.entry_point)

    def run() -> None:
        runpy.run_path(str(program), run_name="__main__")

    try:
        loop.run_until_complete(pulumi.runtime.run_in_stack(run))
    except pulumi.RunError as error:
        pulumi.log.error(str(error))
    except Exception:
        pulumi.log.error("Program failed with an unhandled exception:\n" + traceback.format_exc())
    else:
        return 0
    return TOLD


if __name__ == "__main__":
    gc.disable()  # a program of seconds, which makes half a million objects when it imports pulumi_oci
    # The directory of this file holds modules of the lab, which the program must not find under their bare names.
    sys.path.pop(0)
    sys.exit(main())
