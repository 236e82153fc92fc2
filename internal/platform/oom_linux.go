package platform

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// OOMScore is what SetOOMScore has set for this process, or for one that it descends from.
func OOMScore() (int, error) {
	text, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, fmt.Errorf("reading our own oom_score_adj: %w", err)
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("reading our own oom_score_adj: %w", err)
	}
	return score, nil
}

// SetOOMScore sets how likely the kernel is to choose a process, and what it starts, when memory runs out:
// from -1000 (never) to 1000. Lowering it needs CAP_SYS_RESOURCE.
func SetOOMScore(pid, score int) error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(score)), 0o644); err != nil {
		return fmt.Errorf("setting oom_score_adj of process %d to %d: %w", pid, score, err)
	}
	return nil
}
