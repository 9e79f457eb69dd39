// As much of pulumi-language-nodejs as `run` beside this file needs.  Pulumi publishes its CLI and its generators as
// Go modules and what runs a program as an npm package, but not the language host between them; this is that part
// (https://github.com/pulumi/pulumi, proto/pulumi/language.proto).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/pulumi/pulumi/pkg/v3/codegen/nodejs"
	"github.com/pulumi/pulumi/pkg/v3/codegen/schema"
	"github.com/pulumi/pulumi/sdk/v3/go/common/util/rpcutil"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// The program has told the user what is wrong (sdk/nodejs/cmd/run).
const told = 32

type host struct {
	pulumirpc.UnimplementedLanguageRuntimeServer
	engine string
}

func (host) Handshake(context.Context, *pulumirpc.LanguageHandshakeRequest) (*pulumirpc.LanguageHandshakeResponse, error) {
	return &pulumirpc.LanguageHandshakeResponse{}, nil
}

func (host) GetPluginInfo(context.Context, *emptypb.Empty) (*pulumirpc.PluginInfo, error) {
	return &pulumirpc.PluginInfo{}, nil
}

// None is named: the engine loads a provider when the first resource of its package is registered.
func (host) GetRequiredPackages(context.Context, *pulumirpc.GetRequiredPackagesRequest) (*pulumirpc.GetRequiredPackagesResponse, error) {
	return &pulumirpc.GetRequiredPackagesResponse{}, nil
}

func (host) GeneratePackage(_ context.Context, request *pulumirpc.GeneratePackageRequest) (*pulumirpc.GeneratePackageResponse, error) {
	loader, err := schema.NewLoaderClient(request.LoaderTarget)
	if err != nil {
		return nil, err
	}
	var spec schema.PackageSpec
	if err := json.Unmarshal([]byte(request.Schema), &spec); err != nil {
		return nil, err
	}
	pkg, diags, err := schema.BindSpec(spec, loader, schema.ValidationOptions{})
	if err == nil && diags.HasErrors() {
		err = diags
	}
	if err != nil {
		return nil, err
	}
	files, err := nodejs.GeneratePackage("nat-pod", pkg, request.ExtraFiles, request.LocalDependencies, request.Local, loader)
	for name, content := range files {
		path := filepath.Join(request.Directory, name)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o644))
	}
	return &pulumirpc.GeneratePackageResponse{}, err
}

// Link makes a generated SDK a dependency of the program.
func (host) Link(_ context.Context, request *pulumirpc.LinkRequest) (*pulumirpc.LinkResponse, error) {
	for _, dependency := range request.Packages {
		entry := fmt.Sprintf("dependencies.@pulumi/%s=file:%s", dependency.Package.Name, dependency.Path)
		if err := run(request.Info.RootDirectory, nil, "npm", "pkg", "set", entry); err != nil {
			return nil, err
		}
	}
	return &pulumirpc.LinkResponse{}, nil
}

func (host) InstallDependencies(request *pulumirpc.InstallDependenciesRequest, _ grpc.ServerStreamingServer[pulumirpc.InstallDependenciesResponse]) error {
	return run(request.Info.RootDirectory, nil, "npm", "install", "--silent", "--no-audit", "--no-fund")
}

func (h host) Run(_ context.Context, request *pulumirpc.RunRequest) (*pulumirpc.RunResponse, error) {
	config, err := json.Marshal(request.Config)
	if err != nil {
		return nil, err
	}
	err = run(request.Info.ProgramDirectory, []string{"PULUMI_CONFIG=" + string(config)},
		"node", "node_modules/@pulumi/pulumi/cmd/run",
		"--monitor", request.MonitorAddress, "--engine", h.engine, "--organization", request.Organization,
		"--project", request.Project, "--stack", request.Stack, "--root-directory", request.Info.RootDirectory,
		"--pwd", request.Info.ProgramDirectory, "--dry-run", strconv.FormatBool(request.DryRun),
		"--parallel", strconv.Itoa(int(request.Parallel)), request.Info.EntryPoint)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if exit.ExitCode() == told {
			return &pulumirpc.RunResponse{Bail: true}, nil
		}
		return &pulumirpc.RunResponse{Error: fmt.Sprintf("the program ended with status %d", exit.ExitCode())}, nil
	}
	return &pulumirpc.RunResponse{}, err
}

// What it prints becomes this process's output too, which the engine shows.
func run(directory string, environment []string, name string, arguments ...string) error {
	command := exec.Command(name, arguments...)
	command.Dir = directory
	command.Env = append(os.Environ(), environment...)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	return command.Run()
}

func main() {
	served, err := rpcutil.ServeWithOptions(rpcutil.ServeOptions{Init: func(server *grpc.Server) error {
		pulumirpc.RegisterLanguageRuntimeServer(server, host{engine: os.Args[len(os.Args)-1]})
		return nil
	}})
	if err == nil {
		fmt.Println(served.Port)
		err = <-served.Done
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
