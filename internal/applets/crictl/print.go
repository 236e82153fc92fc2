package crictl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"

	"k1s.io/k1s/internal/errs"
)

// output is the -o flag.
type output string

func (o *output) register(cmd *cobra.Command, def string) {
	cmd.Flags().StringVarP((*string)(o), "output", "o", def, "`format`: json, yaml or table")
}

// object prints v, which json.Marshal understands, as JSON or YAML.
func (o output) object(w io.Writer, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	switch o {
	case "json":
		_, err = fmt.Fprintf(w, "%s\n", text)
	case "yaml":
		if text, err = yaml.JSONToYAML(text); err == nil {
			_, err = w.Write(text)
		}
	default:
		err = errs.New(errs.Usage, "output format %q: use json or yaml", string(o))
	}
	return err
}

// list prints a table with a head, or the messages under key when another format is asked for.
func list[M proto.Message](w io.Writer, o output, key string, items []M, head string, row func(M) string) error {
	if o != "" && o != "table" {
		all := make([]json.RawMessage, len(items))
		for i, m := range items {
			var err error
			if all[i], err = raw(m); err != nil {
				return err
			}
		}
		return o.object(w, map[string]any{key: all})
	}
	t := tabwriter.NewWriter(w, 0, 4, 4, ' ', 0)
	fmt.Fprintln(t, head)
	for _, m := range items {
		fmt.Fprintln(t, row(m))
	}
	return t.Flush()
}

// raw is m as JSON, with the fields that have their zero value, as people grep for them.
func raw(m proto.Message) (json.RawMessage, error) {
	text, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	return text, err
}

// verbose unwraps what the runtime adds to a status: a map whose values mostly are JSON themselves.
func verbose(info map[string]string) map[string]any {
	out := make(map[string]any, len(info))
	for k, v := range info {
		if b := bytes.TrimSpace([]byte(v)); json.Valid(b) && len(b) > 0 {
			out[k] = json.RawMessage(b)
		} else {
			out[k] = v
		}
	}
	return out
}

const shortIDLength = 13

// shortID is enough of an ID to be unique on a node.
func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), shortIDLength)]
}

// age of something made at unix nanoseconds, as people say it.
func age(created int64, now time.Time) string {
	if created == 0 {
		return "unknown"
	}
	d := now.Sub(time.Unix(0, created))
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd ago", int(d.Hours()/24))
	}
}

// size in the decimal units image sizes are usually given in.
func size(bytes uint64) string {
	const units = "kMGT"
	if bytes < 1000 {
		return fmt.Sprintf("%dB", bytes)
	}
	v, i := float64(bytes)/1000, 0
	for v >= 1000 && i < len(units)-1 {
		v, i = v/1000, i+1
	}
	return fmt.Sprintf("%.3g%cB", v, units[i])
}

// memory in binary units, as Kubernetes writes it.
func memory(bytes uint64) string {
	q := resource.NewQuantity(int64(bytes)>>20<<20, resource.BinarySI)
	return q.String()
}

func row(cells ...any) string {
	out := make([]string, len(cells))
	for i, c := range cells {
		out[i] = fmt.Sprint(c)
	}
	return strings.Join(out, "\t")
}

func joined(failures []error) error { return errors.Join(failures...) }
