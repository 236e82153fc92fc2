//go:build system

package system

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"
)

// get asks once over a connection of its own.
func get(ctx context.Context, url string) (int, string, error) {
	return getWith(ctx, &http.Transport{DisableKeepAlives: true}, url)
}

// get asks from inside of a network.
func (n network) get(ctx context.Context, url string) (int, string, error) {
	return getWith(ctx, &http.Transport{DisableKeepAlives: true, DialContext: n.dial}, url)
}

func getWith(ctx context.Context, transport *http.Transport, url string) (int, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return askWith(ctx, transport, "", url)
}

// askWith asks as whom the token is for; "" is nobody.
func askWith(ctx context.Context, transport *http.Transport, token, url string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	client := http.Client{Transport: transport}
	return answerOf(client.Do(req))
}

// answerOf reads an answer: its status and its body.
func answerOf(resp *http.Response, err error) (int, string, error) {
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, strings.TrimSpace(string(b)), err
}
