package daemon

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"k1s.io/k1s/internal/addons"
	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/image/registries"
)

// writePackaged renders the add-ons k1s brings into the directory the add-on manager watches.
func writePackaged(in component.Input) error {
	dns, err := components.ClusterDNS(in)
	if err != nil {
		return err
	}
	files, err := addons.Render(addons.Node{
		ClusterDNS: dns, ClusterDomain: in.Config.Spec.Cluster.Domain, HasUpstreamDNS: in.Facts.Resolver.HasServers,
		PodsProgram: path.Join(in.Paths.CurrentPayload(), "k1s-pods"), PayloadID: in.PayloadID,
		BaseImage: components.BaseImage, StorageDir: in.Paths.Storage(),
	}, components.DisabledAddons(in))
	if err != nil {
		return err
	}
	return syncDir(in.Paths.Packaged(), files)
}

// readRegistries reads the user's registries file; one that is not there says nothing. A file that cannot
// be read is an error: pulling from elsewhere than what was meant is worse than not starting.
func readRegistries(file string) (registries.Registries, error) {
	raw, err := os.ReadFile(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return registries.Registries{}, nil
	case err != nil:
		return registries.Registries{}, fmt.Errorf("reading the registries file: %w", err)
	}
	return registries.Parse(file, raw)
}

// authID identifies the credentials without telling them.
func authID(reg registries.Registries) string {
	text := registries.AuthTOML(reg)
	if text == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// writeRegistries turns the registries file into containerd's configuration.
func writeRegistries(in component.Input, reg registries.Registries) error {
	if !in.Config.Spec.Worker() {
		return nil
	}
	hosts, err := registries.Hosts(reg, in.Config.Spec.Images.DisableDefaultRegistry)
	if err != nil {
		return err
	}
	if err := writeIfChanged(in.Paths.RegistryAuth(), []byte("version = 4\n"+registries.AuthTOML(reg)), 0o600); err != nil {
		return fmt.Errorf("writing the registries' credentials: %w", err)
	}
	return syncDir(in.Paths.Registries(), hosts)
}

// syncDir makes a directory of ours hold exactly these files.
func syncDir(dir string, files map[string]string) error {
	for name, content := range files {
		if err := writeIfChanged(path.Join(dir, name), []byte(content), 0o600); err != nil {
			return fmt.Errorf("writing %s: %w", path.Join(dir, name), err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("looking into %s: %w", dir, err)
	}
	wanted := map[string]bool{}
	for name := range files {
		top, _, _ := strings.Cut(name, "/")
		wanted[top] = true
	}
	for _, e := range entries {
		if !wanted[e.Name()] {
			if err := os.RemoveAll(path.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("removing what is no longer wanted: %w", err)
			}
		}
	}
	return nil
}

// addonReport is the add-on manager's status file.
type addonReport struct {
	Stacks []struct {
		Name     string   `json:"name"`
		Packaged bool     `json:"packaged"`
		State    string   `json:"state"`
		Error    string   `json:"error"`
		Waiting  string   `json:"waiting"`
		Drift    []string `json:"drift"`
	} `json:"stacks"`
}

func addonStatus(in component.Input) ([]control.Addon, error) {
	var r addonReport
	if err := readStatusFile(components.AddonStatus(in), &r); err != nil {
		return nil, err
	}
	var out []control.Addon
	for _, s := range r.Stacks {
		out = append(out, control.Addon{Name: s.Name, Packaged: s.Packaged, State: s.State, Note: cmp.Or(s.Error, s.Waiting), Drift: s.Drift})
	}
	slices.SortFunc(out, func(a, b control.Addon) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func addonProblems(in []control.Addon) []health.Problem {
	var out []health.Problem
	for _, a := range in {
		if a.State == "failed" {
			p := health.New(health.AddonFailed, "manifests %s: %s", a.Name, a.Note)
			p.Component = "addon-manager"
			out = append(out, p)
		}
	}
	return out
}

// imageReport is the images component's status file.
type imageReport struct {
	Problems []health.Problem `json:"problems"`
}

func imageProblems(in component.Input) []health.Problem {
	var r imageReport
	if err := readStatusFile(components.ImageStatus(in), &r); err != nil {
		return []health.Problem{health.FromError(err, health.BundleUnreadable, "images")}
	}
	return r.Problems
}
