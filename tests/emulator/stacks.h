// Leave one stack for another in twenty instructions. swapcontext would save the signal mask too: a
// system call a switch, half of a run's time.
#pragma once

extern "C" void emulator_switch(void **left, void *entered);

#if defined(__x86_64__)
asm(R"(
.text
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");
// What a stack holds on which nothing ran yet: entering it calls `start`.
inline void *fresh_stack(unsigned char *top, void (*start)()) {
    void **at = (void **)top;
    *--at = nullptr;  // start's return address: it never returns
    *--at = (void *)start;
    for (int i = 0; i < 6; i++) *--at = nullptr;
    return at;
}
#elif defined(__aarch64__)
asm(R"(
.text
.globl emulator_switch
.type emulator_switch, %function
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emulator_switch, .-emulator_switch
)");
inline void *fresh_stack(unsigned char *top, void (*start)()) {
    void **at = (void **)(top - 160);
    for (int i = 0; i < 20; i++) at[i] = nullptr;
    at[11] = (void *)start;  // x30, where it returns to
    return at;
}
#else
#error "fibres are written for x86-64 and 64-bit Arm"
#endif
