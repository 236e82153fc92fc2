package config

import (
	"errors"
	"fmt"
	"time"

	"github.com/robfig/cron/v3"
)

// Never is the schedule of what is not done by itself.
const Never = "never"

// Schedule is when something is done by itself: five fields as in crontab(5), or what stands for them, such as @daily; or
// Never.
type Schedule string

// minPause is the least between two times. Whoever writes less has most likely meant something else.
const minPause = time.Minute

// Check is an error where it cannot be understood.
func (s Schedule) Check() error {
	if s == Never {
		return nil
	}
	if s == "" {
		return errors.New("is empty, and must be a cron expression or never")
	}
	c, err := cron.ParseStandard(string(s))
	if err != nil {
		return fmt.Errorf("%q is no cron expression: %w", shorten(string(s)), err)
	}
	first := c.Next(time.Now())
	if first.IsZero() {
		return fmt.Errorf("%q never comes", shorten(string(s)))
	}
	if second := c.Next(first); !second.IsZero() && second.Sub(first) < minPause {
		return fmt.Errorf("%q is more often than once a minute", shorten(string(s)))
	}
	return nil
}

// After is the next time after t; the zero time when there is none.
func (s Schedule) After(t time.Time) time.Time {
	if s == Never {
		return time.Time{}
	}
	c, err := cron.ParseStandard(string(s))
	if err != nil { // Check has said so
		return time.Time{}
	}
	return c.Next(t)
}
