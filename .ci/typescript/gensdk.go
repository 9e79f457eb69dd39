// gensdk SCHEMA OUT writes the TypeScript SDK of a package: what Pulumi's language host for Node.js does in
// `pulumi package gen-sdk --language nodejs`, with the same code.  Pulumi publishes that code as a Go module, the host not.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/blang/semver"
	"github.com/pulumi/pulumi/pkg/v3/codegen/nodejs"
	"github.com/pulumi/pulumi/pkg/v3/codegen/schema"
)

// The package refers to no other.
type none struct{}

func (none) LoadPackage(string, *semver.Version) (*schema.Package, error) { return nil, errors.New("no loader") }
func (none) LoadPackageV2(context.Context, *schema.PackageDescriptor) (*schema.Package, error) {
	return nil, errors.New("no loader")
}
func (none) LoadPackageReference(string, *semver.Version) (schema.PackageReference, error) {
	return nil, errors.New("no loader")
}
func (none) LoadPackageReferenceV2(context.Context, *schema.PackageDescriptor) (schema.PackageReference, error) {
	return nil, errors.New("no loader")
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	text, err := os.ReadFile(os.Args[1])
	check(err)
	var spec schema.PackageSpec
	check(json.Unmarshal(text, &spec))
	pkg, diags, err := schema.BindSpec(spec, none{}, schema.ValidationOptions{})
	check(err)
	if diags.HasErrors() {
		check(diags)
	}
	files, err := nodejs.GeneratePackage("nat-pod", pkg, nil, nil, true, none{})
	check(err)
	for name, content := range files {
		path := filepath.Join(os.Args[2], name)
		check(os.MkdirAll(filepath.Dir(path), 0o755))
		check(os.WriteFile(path, content, 0o644))
	}
}
