package main

import (
	"bytes"
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// document is the part of SPDX 2.3 in JSON that every reader needs:
// https://spdx.github.io/spdx-spec/v2.3/ and its schema, spdx-schema.json.
type document struct {
	SPDXVersion       string `json:"spdxVersion"`
	DataLicense       string `json:"dataLicense"`
	SPDXID            string `json:"SPDXID"`
	Name              string `json:"name"`
	DocumentNamespace string `json:"documentNamespace"`
	CreationInfo      struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	} `json:"creationInfo"`
	Packages []struct {
		Name             string `json:"name"`
		SPDXID           string `json:"SPDXID"`
		VersionInfo      string `json:"versionInfo"`
		DownloadLocation string `json:"downloadLocation"`
		FilesAnalyzed    *bool  `json:"filesAnalyzed"`
		LicenseConcluded string `json:"licenseConcluded"`
		LicenseDeclared  string `json:"licenseDeclared"`
		CopyrightText    string `json:"copyrightText"`
		ExternalRefs     []struct {
			ReferenceCategory string `json:"referenceCategory"`
			ReferenceType     string `json:"referenceType"`
			ReferenceLocator  string `json:"referenceLocator"`
		} `json:"externalRefs"`
	} `json:"packages"`
	Relationships []struct {
		SPDXElementID      string `json:"spdxElementId"`
		RelatedSPDXElement string `json:"relatedSpdxElement"`
		RelationshipType   string `json:"relationshipType"`
	} `json:"relationships"`
}

var (
	spdxID = regexp.MustCompile(`^SPDXRef-[A-Za-z0-9.-]+$`)
	// What may follow a package's name in a purl: letters, digits and what need not be escaped.
	purlVersion = regexp.MustCompile(`^([A-Za-z0-9._~:-]|%[0-9A-F]{2})+$`)
	// The licences classify knows, one or several.
	expression = regexp.MustCompile(`^(NOASSERTION|[A-Za-z0-9.-]+( AND [A-Za-z0-9.-]+)*)$`)
)

// writtenNotice runs what the build runs, on this test as the only program and two packages of Debian.
func writtenNotice(t *testing.T, version string) (dir string, all []component) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	debian, copyright := filepath.Join(dir, "debian-packages"), filepath.Join(dir, "copyright")
	for file, text := range map[string]string{
		debian:    "nftables 1.0.9-1+b2 " + copyright + "\nlibc6-dev 2:2.41-12+deb13u3~1 " + copyright + "\n",
		copyright: "Copyright: somebody\nLicence: something with conditions\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"notice", "-o", dir, "-version", version, "-debian", debian, "-main", "go",
		"-copied", filepath.Base(self) + "=github.com/spf13/cobra", self}
	if err := run(t.Context(), args); err != nil {
		t.Fatal(err)
	}
	decode(t, filepath.Join(dir, "components.json"), &all)
	for _, name := range []string{"go", "nftables", "libc6-dev", "github.com/klauspost/compress", "github.com/spf13/cobra"} {
		if !slices.ContainsFunc(all, func(c component) bool { return c.Name == name }) {
			t.Errorf("components.json does not name %s", name)
		}
	}
	return dir, all
}

// decode reads JSON that has nothing but what v has fields for.
func decode(t *testing.T, file string, v any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Fatalf("%s: %v", filepath.Base(file), err)
	}
}

func TestTheBillOfMaterialsIsSPDXAndHasEveryComponent(t *testing.T) {
	dir, all := writtenNotice(t, "v1.2.3")
	var d document
	decode(t, filepath.Join(dir, "sbom.spdx.json"), &d)

	if d.SPDXVersion != "SPDX-2.3" || d.DataLicense != "CC0-1.0" || d.SPDXID != "SPDXRef-DOCUMENT" || d.Name != "k1s-v1.2.3" {
		t.Errorf("the document says of itself %q %q %q %q", d.SPDXVersion, d.DataLicense, d.SPDXID, d.Name)
	}
	if u, err := url.Parse(d.DocumentNamespace); err != nil || !u.IsAbs() || u.Fragment != "" {
		t.Errorf("its namespace is %q, want an absolute URI without a fragment", d.DocumentNamespace)
	}
	if _, err := time.Parse("2006-01-02T15:04:05Z", d.CreationInfo.Created); err != nil {
		t.Errorf("created: %v", err)
	}
	if len(d.CreationInfo.Creators) == 0 || !strings.HasPrefix(d.CreationInfo.Creators[0], "Tool: ") {
		t.Errorf("creators are %q, want a tool", d.CreationInfo.Creators)
	}

	type named struct{ name, version, licence string }
	packages, ids := map[named]int{}, map[string]bool{d.SPDXID: true}
	for i, p := range d.Packages {
		packages[named{p.Name, p.VersionInfo, p.LicenseDeclared}]++
		if !spdxID.MatchString(p.SPDXID) || ids[p.SPDXID] {
			t.Errorf("%s: the identifier %q is malformed, or another package's", p.Name, p.SPDXID)
		}
		ids[p.SPDXID] = true
		if p.FilesAnalyzed == nil || *p.FilesAnalyzed {
			t.Errorf("%s: filesAnalyzed must be false: no file of it is listed", p.Name)
		}
		if u, err := url.Parse(p.DownloadLocation); p.DownloadLocation != "NOASSERTION" && (err != nil || u.Scheme != "https") {
			t.Errorf("%s: it is downloaded from %q", p.Name, p.DownloadLocation)
		}
		if !expression.MatchString(p.LicenseDeclared) || p.LicenseConcluded != "NOASSERTION" || p.CopyrightText != "NOASSERTION" {
			t.Errorf("%s: licences are %q and %q, copyright %q", p.Name, p.LicenseDeclared, p.LicenseConcluded, p.CopyrightText)
		}
		if i == 0 { // k1s itself is in no registry
			continue
		}
		if len(p.ExternalRefs) != 1 || p.ExternalRefs[0].ReferenceCategory != "PACKAGE-MANAGER" || p.ExternalRefs[0].ReferenceType != "purl" {
			t.Errorf("%s: references are %+v, want one purl", p.Name, p.ExternalRefs)
			continue
		}
		rest, ok := strings.CutPrefix(p.ExternalRefs[0].ReferenceLocator, "pkg:")
		name, version, found := strings.Cut(rest, "@")
		if !ok || !found || !strings.HasSuffix(name, "/"+p.Name) || !purlVersion.MatchString(version) {
			t.Errorf("%s: the purl is %q", p.Name, p.ExternalRefs[0].ReferenceLocator)
		}
		if unescaped, err := url.PathUnescape(version); err != nil || unescaped != p.VersionInfo {
			t.Errorf("%s: the purl has version %q, the package %q", p.Name, unescaped, p.VersionInfo)
		}
	}

	want := map[named]int{{"k1s", "v1.2.3", "NOASSERTION"}: 1}
	for _, c := range all {
		want[named{c.Name, c.Version, c.License}]++
		if c.Version == "" || c.License == "" {
			t.Errorf("components.json: %+v has no version or no licence", c)
		}
	}
	for c, n := range want {
		if packages[c] != n {
			t.Errorf("%v is %d times in the document, %d times in components.json", c, packages[c], n)
		}
	}
	if len(packages) != len(want) {
		t.Errorf("there are %d packages in the document, want %d", len(packages), len(want))
	}

	contained := map[string]bool{}
	for _, r := range d.Relationships {
		if !ids[r.SPDXElementID] || !ids[r.RelatedSPDXElement] {
			t.Errorf("%+v relates what is not in the document", r)
		}
		contained[r.SPDXElementID+" "+r.RelationshipType+" "+r.RelatedSPDXElement] = true
	}
	if !contained["SPDXRef-DOCUMENT DESCRIBES SPDXRef-k1s"] {
		t.Error("the document does not say that it describes k1s")
	}
	for _, p := range d.Packages[1:] {
		if !contained["SPDXRef-k1s CONTAINS "+p.SPDXID] {
			t.Errorf("nothing says that k1s contains %s", p.SPDXID)
		}
	}
}

func TestNoticeHasEveryLicenceOnce(t *testing.T) {
	dir, all := writtenNotice(t, "v1.2.3")
	b, err := os.ReadFile(filepath.Join(dir, "NOTICE"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if !strings.Contains(string(b), "\n"+c.Name+" "+c.Version+" ("+c.License+")\n") {
			t.Errorf("NOTICE does not list %s %s", c.Name, c.Version)
		}
	}
	if text := "Licence: something with conditions"; strings.Count(string(b), text) != 1 {
		t.Errorf("a text that two packages share is there %d times, want once", strings.Count(string(b), text))
	}
}

// What belongs to the build and not to what is built must not be in these files: they are packed, and packing takes minutes.
func TestAnotherBuildOfTheSameWritesTheSame(t *testing.T) {
	read := func() (files [3][]byte) {
		dir, _ := writtenNotice(t, "v1.2.3")
		for i, name := range []string{"NOTICE", "components.json", "sbom.spdx.json"} {
			var err error
			if files[i], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		return files
	}
	if a, b := read(), read(); !slices.EqualFunc(a[:], b[:], bytes.Equal) {
		t.Error("the same program gives other files the second time")
	}
}
