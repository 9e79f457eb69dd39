"""A Python language host, used only where Pulumi's own `pulumi-language-python` is missing.

Pulumi publishes its CLI as Go modules, from which `.ci/pulumi/install` builds it, but not its language host.  This has
what `pulumi preview|up|refresh|destroy` and `pulumi package get-schema` need of one.  It starts the program, or a
plugin that is a Python program, in its own process and says how that ended
(https://github.com/pulumi/pulumi, proto/pulumi/language.proto).  It installs nothing, and leaves it to the engine to
find out which providers the program uses.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import grpc
from google.protobuf import empty_pb2
from pulumi.runtime.proto import language_pb2, language_pb2_grpc, plugin_pb2

from nat_pod.lab.engine import run_program
from nat_pod.lab.engine.plugin import new_server, serve, write_executable


class LanguageHost(language_pb2_grpc.LanguageRuntimeServicer):
    """Pulumi's LanguageRuntime service for Python; methods are documented in its protocol."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._running: list[subprocess.Popen[bytes]] = []

    def Handshake(
        self, request: language_pb2.LanguageHandshakeRequest, context: grpc.ServicerContext
    ) -> language_pb2.LanguageHandshakeResponse:
        return language_pb2.LanguageHandshakeResponse()

    def GetPluginInfo(self, request: empty_pb2.Empty, context: grpc.ServicerContext) -> plugin_pb2.PluginInfo:
        return plugin_pb2.PluginInfo()

    def About(self, request: language_pb2.AboutRequest, context: grpc.ServicerContext) -> language_pb2.AboutResponse:
        return language_pb2.AboutResponse(executable=sys.executable, version=platform.python_version())

    def GetRequiredPackages(
        self, request: language_pb2.GetRequiredPackagesRequest, context: grpc.ServicerContext
    ) -> language_pb2.GetRequiredPackagesResponse:
        # Name none: the engine loads a provider when the first resource of its package is registered.
        return language_pb2.GetRequiredPackagesResponse()

    def Run(self, request: language_pb2.RunRequest, context: grpc.ServicerContext) -> language_pb2.RunResponse:
        # The program prints to this process's output, which the engine shows.
        program = subprocess.Popen(
            [_interpreter(request.info), "-u", run_program.__file__, self._engine],
            cwd=request.info.program_directory,
            stdin=subprocess.PIPE,
        )
        self._running.append(program)
        program.communicate(request.SerializeToString())
        status = program.returncode
        if status == run_program.TOLD:
            return language_pb2.RunResponse(bail=True)
        return language_pb2.RunResponse(error=f"the program ended with status {status}" if status else "")

    def InstallDependencies(
        self, request: language_pb2.InstallDependenciesRequest, context: grpc.ServicerContext
    ) -> Iterator[language_pb2.InstallDependenciesResponse]:
        return iter(())  # only what this interpreter has is available

    def RunPlugin(
        self, request: language_pb2.RunPluginRequest, context: grpc.ServicerContext
    ) -> Iterator[language_pb2.RunPluginResponse]:
        """A plugin that is a Python program, as NatPod's package is; the first thing it prints is its port."""
        environment = dict(entry.partition("=")[::2] for entry in request.env) or dict(os.environ)
        interpreter = _interpreter(request.info)
        if interpreter == sys.executable:
            # It has no environment of its own and runs in this one, where nat-pod may be only a checkout.
            environment.setdefault("PYTHONPATH", str(Path(__file__).resolve().parents[3]))
        with subprocess.Popen(
            [interpreter, "-u", request.info.program_directory, *request.args],
            cwd=request.pwd,
            env=environment,
            stdout=subprocess.PIPE,
        ) as plugin:
            self._running.append(plugin)
            context.add_callback(plugin.terminate)  # the engine hangs up when it no longer needs the plugin
            assert plugin.stdout is not None
            for line in plugin.stdout:
                yield language_pb2.RunPluginResponse(stdout=line)
        yield language_pb2.RunPluginResponse(exitcode=plugin.returncode)

    def Cancel(self, request: empty_pb2.Empty, context: grpc.ServicerContext) -> empty_pb2.Empty:
        self.stop()
        return empty_pb2.Empty()

    def stop(self) -> None:
        """End whatever still runs: without an engine it would wait for ever."""
        for process in self._running:
            process.kill()


def write_plugin(home: Path) -> None:
    """Put the language host into a PULUMI_HOME, where the CLI looks when it finds none beside itself."""
    directory = home / "plugins" / f"language-python-v{version('pulumi')}"
    write_executable(directory / "pulumi-language-python", "nat_pod.lab.engine.language_host")


def _interpreter(info: language_pb2.ProgramInfo) -> str:
    """The Python of the virtual environment that Pulumi.yaml names; this one where there is none."""
    options = dict(info.options.items())
    python = Path(info.root_directory, str(options.get("virtualenv", ".venv")), "bin", "python")
    return str(python) if python.exists() else sys.executable


def main() -> int:
    """Serve the engine whose address is the last argument."""
    host = LanguageHost(sys.argv[-1])
    server = new_server(4)
    language_pb2_grpc.add_LanguageRuntimeServicer_to_server(host, server)
    serve(server)
    host.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
