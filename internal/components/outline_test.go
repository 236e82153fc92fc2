package components

import (
	"fmt"
	"path/filepath"
	"testing"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
)

// What is shown before the machine is known is what will run.
func TestTheOutlineHasTheUnitsAndComponentsOfThePlan(t *testing.T) {
	files, err := filepath.Glob("testdata/*/config.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	shape := func(units []component.Unit) string {
		s := ""
		for _, u := range units {
			s += u.Name + ":"
			for _, c := range u.Components {
				s += fmt.Sprint(" ", c.Name, c.Needs)
			}
			s += "\n"
		}
		return s
	}
	for _, file := range files {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			loaded, err := config.Effective(config.Sources{File: file, FileMustExist: true}, config.Known{Components: Names()})
			if err != nil {
				t.Fatal(err)
			}
			plan, err := Plan(input(loaded.Config))
			if err != nil {
				t.Fatal(err)
			}
			outline, err := Outline(component.Input{Config: loaded.Config})
			if err != nil {
				t.Fatal(err)
			}
			if got, want := shape(outline), shape(plan); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}
