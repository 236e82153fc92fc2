package main

import (
	"bytes"
	"os"
	"testing"
)

func TestKubeletFieldsAreThoseOfTheKubernetesThisBuildUses(t *testing.T) {
	want, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../kubelet_fields.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("kubelet_fields.go is out of date, run: go generate ./internal/config")
	}
}
