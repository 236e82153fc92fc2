//go:build !linux

package main

// machine is asked for the list of tests only: they run on Linux.
func machine() facts { return facts{} }
