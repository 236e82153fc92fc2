package clustercmd

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/image/registries"
)

// registriesFile is what a node calls it, and certificatesDir has what it names.
const (
	registriesFile  = "registries.yaml"
	certificatesDir = "registries"
	etcInNode       = "/etc/k1s"
)

// registrySource is the registries file in the making.
type registrySource struct {
	name string // as messages call it
	root map[string]any
}

// registrySource reads what was written about registries: the flag's file, or what the cluster file says.
func (o createOptions) registrySource(f *written, here string) (registrySource, error) {
	src := registrySource{root: map[string]any{}}
	file, dir := o.registries, here
	if n := f.Registries; file == "" && n != nil {
		if n.Kind == yaml.ScalarNode {
			file, dir = n.Value, f.dir
		} else {
			src.name = f.name + " (registries)"
			raw, err := yaml.Marshal(n)
			if err == nil {
				_, err = registries.Parse(src.name, raw)
			}
			if err == nil {
				err = yaml.Unmarshal(raw, &src.root)
			}
			if err != nil {
				return src, f.problem("registries", err)
			}
		}
	}
	if file == "" {
		return src, nil
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(dir, file)
	}
	src.name = file
	raw, err := readFile(file)
	if err != nil {
		return src, errs.New(errs.Invalid, "reading the registries file: %w", err)
	}
	if _, err := registries.Parse(file, raw); err != nil {
		return src, err
	}
	return src, errs.As(errs.Invalid, yaml.Unmarshal(raw, &src.root))
}

// at is the map under a key, made if it is not there.
func at(m map[string]any, key string) map[string]any {
	if sub, ok := m[key].(map[string]any); ok {
		return sub
	}
	sub := map[string]any{}
	m[key] = sub
	return sub
}

func copyOf(v any) (any, error) {
	raw, err := yaml.Marshal(v)
	if err != nil {
		return nil, err
	}
	var out any
	return out, yaml.Unmarshal(raw, &out)
}

// add lets nodes pull from a registry that this machine reaches, under the name it has here.
func (s *registrySource) add(spec *cluster.Spec, text string) error {
	bad := func(format string, args ...any) error {
		return errs.Hint(errs.New(errs.Usage, "registry %q: %w", text, fmt.Errorf(format, args...)),
			"write [http://|https://]HOST[:PORT], e.g. localhost:5000 or https://registry.example")
	}
	scheme, host, explicit := strings.Cut(text, "://")
	if !explicit {
		scheme, host = "", text
	}
	u, err := url.Parse("https://" + host)
	if err != nil || u.Host != host || u.Hostname() == "" {
		return bad("it is no host with a port")
	}
	r := cluster.Reach{Host: u.Hostname()}
	switch {
	case explicit && scheme != "http" && scheme != "https":
		return bad("the scheme is http or https")
	case !explicit && r.Local(): // as docker and containerd take it
		scheme = "http"
	case !explicit:
		scheme = "https"
	}
	port := map[string]uint64{"http": 80, "https": 443}[scheme]
	if u.Port() != "" {
		if port, err = strconv.ParseUint(u.Port(), 10, 16); err != nil || port == 0 {
			return bad("%q is no port", u.Port())
		}
	}
	r.Port = uint16(port)
	endpoint := scheme + "://" + host
	if r.Local() { // in a node that would be the node
		endpoint = scheme + "://" + net.JoinHostPort(cluster.HostName, strconv.Itoa(int(r.Port)))
	}
	mirror := at(at(s.root, "mirrors"), host)
	if there, ok := mirror["endpoint"]; ok {
		return bad("there is a mirror of it already: %v", there)
	}
	mirror["endpoint"] = []any{endpoint}
	// Credentials and certificates are looked up by the host that is talked to.
	if configs, _ := s.root["configs"].(map[string]any); r.Local() && configs[host] != nil {
		same, err := copyOf(configs[host])
		if err != nil {
			return err
		}
		configs[strings.TrimPrefix(endpoint, scheme+"://")] = same
	}
	addReach(spec, r)
	return nil
}

// files are the registries file for nodes, and what it names of this machine.
func (s *registrySource) files(volumes []cluster.Volume) (map[string][]byte, error) {
	if len(s.root) == 0 {
		return nil, nil
	}
	out := map[string][]byte{}
	same, err := copyOf(s.root)
	if err != nil {
		return nil, err
	}
	root, _ := same.(map[string]any)
	configs, _ := root["configs"].(map[string]any)
	for host := range configs {
		tls, _ := at(configs, host)["tls"].(map[string]any)
		for _, key := range []string{"ca_file", "cert_file", "key_file"} {
			file, _ := tls[key].(string)
			if file == "" {
				continue
			}
			content, err := os.ReadFile(file)
			switch {
			case err == nil:
				name := path.Join(certificatesDir, strings.NewReplacer(":", "_", "/", "_").Replace(host)+"-"+filepath.Base(file))
				out[name] = content
				tls[key] = path.Join(etcInNode, name)
			case errors.Is(err, fs.ErrNotExist) && inNode(file, volumes):
			default:
				return nil, errs.Hint(errs.New(errs.Invalid, "%s: configs.%s.tls.%s: %w", s.name, host, key, err),
					"files are taken from this machine; one that is in a node only has to be below %s or in a volume", etcInNode)
			}
		}
	}
	raw, err := yaml.Marshal(root)
	if err == nil {
		_, err = registries.Parse(registriesFile, raw)
	}
	out[registriesFile] = raw
	return out, err
}

// inNode tells that a file may be in nodes although it is not on this machine.
func inNode(file string, volumes []cluster.Volume) bool {
	if strings.HasPrefix(file, etcInNode+"/") {
		return true
	}
	for _, v := range volumes {
		if file == v.Node || strings.HasPrefix(file, v.Node+"/") {
			return true
		}
	}
	return false
}
