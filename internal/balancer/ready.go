package balancer

import (
	"context"
	"fmt"
	"io"
	"net/http"
)

// Ready is an Options.Check of API servers. It asks as the load balancers in front of them do; aggregated APIs are no reason to leave a server.
func Ready(c *http.Client) func(ctx context.Context, server string) error {
	return func(ctx context.Context, server string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+server+"/readyz?exclude=poststarthook/apiservice-discovery-controller", nil)
		if err != nil {
			return err
		}
		resp, err := c.Do(req)
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16)) // so that the connection is kept
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("it is not ready (%s)", resp.Status)
		}
		return nil
	}
}
