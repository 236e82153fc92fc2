package cli

import (
	"fmt"
	"io"

	"k1s.io/k1s/internal/health"
)

// printProblems shows problems the same way wherever they come up.
func printProblems(w io.Writer, problems []health.Problem) error {
	for _, p := range problems {
		who := ""
		if p.Component != "" {
			who = p.Component + ": "
		}
		if _, err := fmt.Fprintf(w, "%-9s%s%s (%s)\n", string(p.Severity)+":", who, p.Text, p.Code); err != nil {
			return err
		}
		if p.Remedy != "" {
			fmt.Fprintf(w, "         %s\n", p.Remedy)
		}
	}
	return nil
}
