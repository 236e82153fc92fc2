package addonmanager

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
)

// report is the status file.
type report struct {
	// Standby is set while another server's add-on manager acts.
	Standby bool          `json:"standby,omitempty"`
	Stacks  []stackReport `json:"stacks"`
}

// States of a stack.
const (
	stateFailed   = "failed"   // see Error
	stateApplying = "applying" // not complete yet
	stateApplied  = "applied"  // all objects are there
	stateWaiting  = "waiting"  // all are there, not all that should be is up: see Waiting
	stateReady    = "ready"    // what makes the add-on ready is up
)

type stackReport struct {
	Name     string   `json:"name"`
	Packaged bool     `json:"packaged"`
	State    string   `json:"state"`
	Error    string   `json:"error,omitempty"`
	Hint     string   `json:"hint,omitempty"`
	Waiting  string   `json:"waiting,omitempty"`
	Objects  int      `json:"objects"`
	Drift    []string `json:"drift,omitempty"`
}

func (m *manager) report() report {
	r := report{Stacks: []stackReport{}}
	for _, s := range m.sorted() {
		r.Stacks = append(r.Stacks, s.report())
	}
	return r
}

// problem is what is wrong with the stack now.
func (s *state) problem() error {
	if s.present && s.parseErr != nil {
		return s.parseErr
	}
	return s.err
}

func (s *state) report() stackReport {
	r := stackReport{Name: s.id.name, Packaged: s.id.origin == packaged, Objects: len(s.inv.Objects), Drift: s.inv.Drift}
	err := s.problem()
	switch {
	case err != nil:
		r.State, r.Error = stateFailed, err.Error()
		r.Hint, _ = errs.HintOf(err)
	case !s.present || s.inv.Hash != s.stack.hash:
		r.State = stateApplying
	case len(s.stack.ready) == 0:
		r.State = stateApplied
	case s.notReady != nil || s.asked.IsZero():
		r.State = stateWaiting
		if s.notReady != nil {
			r.Waiting = s.notReady.Error()
		}
	default:
		r.State = stateReady
	}
	return r
}

func (m *manager) writeStatus() error { return m.write(m.report()) }

// write replaces the status file when there is something new to say.
func (m *manager) write(r report) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if bytes.Equal(b, m.lastStatus) {
		return nil
	}
	if err := durable.WriteFile(m.o.statusFile, append(b, '\n'), 0o644); err != nil {
		return err
	}
	m.lastStatus = b
	return nil
}

// note writes an event when a stack has begun to fail in a new way, for those who look at the cluster only.
func (m *manager) note(ctx context.Context, s *state) {
	err := s.problem()
	if err == nil {
		s.noted = ""
		return
	}
	text := err.Error()
	if text == s.noted {
		return
	}
	s.noted = text
	if s.parseErr != nil {
		m.log.Warn("stack cannot be read", "stack", s.id.String(), "err", err)
	}
	if len(text) > 1000 {
		text = text[:1000] + "…"
	}
	now := metav1.NewTime(time.Now()).UTC().Format(time.RFC3339)
	_, err = m.cluster.dynamic.Resource(schema.GroupVersionResource{Version: "v1", Resource: "events"}).Namespace(inventoryNamespace).Create(ctx,
		&unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1", "kind": "Event",
			"metadata":       map[string]any{"generateName": inventoryName(s.id) + "-", "namespace": inventoryNamespace},
			"type":           "Warning",
			"reason":         "StackFailed",
			"message":        fmt.Sprintf("%s: %s", s.id, text),
			"involvedObject": map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "namespace": inventoryNamespace, "name": inventoryName(s.id)},
			"source":         map[string]any{"component": "k1s-addon-manager"},
			"firstTimestamp": now, "lastTimestamp": now, "count": int64(1),
		}}, metav1.CreateOptions{FieldManager: fieldManager})
	if err != nil {
		m.log.Debug("event not written", "err", err)
	}
}
