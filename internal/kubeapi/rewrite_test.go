package kubeapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// secrets is an API server with Secrets, some of them written in an old way.
type secrets struct {
	mu    sync.Mutex
	names []string
	old   map[string]bool
	puts  []string
	gone  int               // so many continue tokens have expired
	say   map[string]int    // status of a PUT by name
	what  map[string]string // message with it
}

func (s *secrets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fail := func(code int, format string, args ...any) {
		w.WriteHeader(code)
		fmt.Fprintf(w, format, args...)
	}
	if r.Method == http.MethodPut {
		name := filepath.Base(r.URL.Path)
		s.puts = append(s.puts, name)
		var in struct {
			Data     map[string]string `json:"data"`
			Metadata struct {
				ResourceVersion string `json:"resourceVersion"`
			} `json:"metadata"`
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Data["of"] != name || in.Metadata.ResourceVersion != "7" ||
			r.URL.Path != "/api/v1/namespaces/n/secrets/"+name || r.Header.Get("Content-Type") != "application/json" {
			fail(http.StatusBadRequest, `{"message":"%s is not what was listed"}`, r.URL.Path)
			return
		}
		if code := s.say[name]; code != 0 {
			fail(code, `{"message":%q}`, s.what[name])
			return
		}
		version := "7"
		if s.old[name] {
			version, s.old[name] = "8", false
		}
		fmt.Fprintf(w, `{"metadata":{"resourceVersion":%q}}`, version)
		return
	}
	at, _ := strconv.Atoi(r.URL.Query().Get("continue"))
	if at > 0 && s.gone > 0 {
		s.gone--
		fail(http.StatusGone, `{"message":"too old","metadata":{"continue":"%d"}}`, at)
		return
	}
	limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	end, next := min(at+limit, len(s.names)), ""
	if end < len(s.names) {
		next = strconv.Itoa(end)
	}
	var items []string
	for _, n := range s.names[at:end] {
		items = append(items, fmt.Sprintf(`{"metadata":{"namespace":"n","name":%q,"resourceVersion":"7"},"data":{"of":%q}}`, n, n))
	}
	fmt.Fprintf(w, `{"metadata":{"continue":%q,"remainingItemCount":%d},"items":[%s]}`, next, len(s.names)-end, strings.Join(items, ","))
}

func many(n int) *secrets {
	s := &secrets{old: map[string]bool{}}
	for i := range n {
		name := fmt.Sprintf("s%03d", i)
		s.names = append(s.names, name)
		s.old[name] = i%2 == 0
	}
	return s
}

func TestEveryObjectIsWrittenAgainUntilAPassFindsNoOldOne(t *testing.T) {
	s := many(60)
	s.gone = 2
	var told []string
	got, err := asks(t, s).Rewrite(t.Context(), "secrets", func(done, all int) { told = append(told, fmt.Sprintf("%d/%d", done, all)) })
	if err != nil || got != (Rewritten{Objects: 60, Written: 30}) {
		t.Errorf("%+v, %v", got, err)
	}
	if len(s.puts) != 120 || !slices.Contains(told, "60/60") || told[0] != "1/60" {
		t.Errorf("%d written, told %v", len(s.puts), told)
	}
}

func TestWhatOthersWriteOrDeleteMeanwhileIsLeftToThem(t *testing.T) {
	s := many(2)
	s.say = map[string]int{"s000": http.StatusConflict, "s001": http.StatusNotFound}
	got, err := asks(t, s).Rewrite(t.Context(), "secrets", func(int, int) {})
	if err != nil || got != (Rewritten{Objects: 2}) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestAnObjectThatCannotBeWrittenIsNamedAndTheOthersAreWritten(t *testing.T) {
	s := many(40)
	s.say, s.what = map[string]int{"s003": http.StatusForbidden}, map[string]string{"s003": "a webhook says no"}
	_, err := asks(t, s).Rewrite(t.Context(), "secrets", func(int, int) {})
	if err == nil || err.Error() != "writing secret n/s003 again: the API server answers 403: a webhook says no" {
		t.Errorf("error %v", err)
	}
	if len(s.puts) != 40 {
		t.Errorf("%d were written", len(s.puts))
	}
}

func TestSecretsThatCannotBeDecryptedAreToldAsTheServerSays(t *testing.T) {
	s := many(1200)
	s.gone = 1
	if err := asks(t, s).Readable(t.Context(), "secrets"); err != nil {
		t.Error(err)
	}
	c := asks(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprint(w, `{"message":"identity transformer tried to read encrypted data"}`)
	}))
	err := c.Readable(t.Context(), "secrets")
	var st *StatusError
	if !errors.As(err, &st) || st.Code != 500 || !strings.Contains(err.Error(), "tried to read encrypted data") {
		t.Errorf("error %v", err)
	}
}

func TestTheEncryptionConfigurationInUseIsReadFromTheMetrics(t *testing.T) {
	metrics := "# HELP x\n" + `apiserver_encryption_config_controller_last_config_info{apiserver_id_hash="sha256:1",hash="sha256:2"} 1` + "\nother 1\n"
	c := asks(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, metrics) }))
	if got, err := c.EncryptionConfig(t.Context()); got != "sha256:2" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	metrics = "other 1\n"
	if got, err := c.EncryptionConfig(t.Context()); err == nil {
		t.Errorf("%q without an error", got)
	}
}
