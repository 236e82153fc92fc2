package main

import (
	"bytes"
	"os"
	"testing"
)

func TestUpstreamFieldsAreThoseOfTheKubernetesThisBuildUses(t *testing.T) {
	want, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../upstream_fields.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("upstream_fields.go is out of date, run: go generate ./internal/config")
	}
}
