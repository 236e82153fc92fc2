// Just enough to write a program without a C library: the entry point and system calls for the
// architectures k1s is built for. Programs made with it are a few kilobytes and touch a handful of
// pages, which counts where one of them runs in every pod.
#ifndef TINY_H
#define TINY_H

#if defined(__x86_64__)
enum { SYS_rt_sigprocmask = 14, SYS_exit = 60, SYS_execve = 59, SYS_wait4 = 61, SYS_rt_sigtimedwait = 128, SYS_readlinkat = 267, SYS_write = 1 };
__asm__(".globl _start\n_start:\n  xor %ebp, %ebp\n  mov %rsp, %rdi\n  and $-16, %rsp\n  call start\n  hlt\n");
static long sys4(long n, long a, long b, long c, long d)
{
	long r;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return r;
}
#elif defined(__aarch64__)
enum { SYS_rt_sigprocmask = 135, SYS_exit = 93, SYS_execve = 221, SYS_wait4 = 260, SYS_rt_sigtimedwait = 137, SYS_readlinkat = 78, SYS_write = 64 };
__asm__(".globl _start\n_start:\n  mov x29, #0\n  mov x30, #0\n  mov x0, sp\n  and sp, x0, #-16\n  bl start\n  brk #0\n");
static long sys4(long n, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}
#elif defined(__arm__)
enum { SYS_rt_sigprocmask = 175, SYS_exit = 1, SYS_execve = 11, SYS_wait4 = 114, SYS_rt_sigtimedwait = 177, SYS_readlinkat = 332, SYS_write = 4 };
__asm__(".arm\n.globl _start\n.type _start, %function\n_start:\n  mov fp, #0\n  mov lr, #0\n  mov r0, sp\n  bic sp, sp, #7\n  bl start\n  udf #0\n");
// In ARM state r7 is an ordinary register, which holds the number of the system call.
__attribute__((target("arm"))) static long sys4(long n, long a, long b, long c, long d)
{
	register long r7 __asm__("r7") = n;
	register long r0 __asm__("r0") = a;
	register long r1 __asm__("r1") = b;
	register long r2 __asm__("r2") = c;
	register long r3 __asm__("r3") = d;
	__asm__ volatile("svc #0" : "+r"(r0) : "r"(r7), "r"(r1), "r"(r2), "r"(r3) : "memory");
	return r0;
}
#else
#error "add this architecture to tiny.h"
#endif

// What the kernel puts on the stack: argc, argv, NULL, environment, NULL.
__attribute__((used, noreturn)) void start(long *stack);

__attribute__((noreturn)) static void quit(int status)
{
	for (;;)
		sys4(SYS_exit, status, 0, 0, 0);
}

static void complain(const char *s)
{
	long n = 0;
	while (s[n])
		n++;
	sys4(SYS_write, 2, (long)s, n, 0);
}

#endif
