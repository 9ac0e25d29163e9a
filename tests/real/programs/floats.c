/* Floating point: float, double and long double, rounding modes, exceptions, conversions, libm, printing and parsing. */
#include <fenv.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t sum = 0xcbf29ce484222325;

static void mix(uint64_t value) { sum = (sum ^ value) * 0x100000001b3; }
/* A NaN's sign and payload depend on which operand the compiler put first. */
static void mix_double(double x) { uint64_t u; memcpy(&u, &x, 8); mix(isnan(x) ? 1 : u); }
static void mix_float(float x) { uint32_t u; memcpy(&u, &x, 4); mix(isnan(x) ? 1 : u); }
static void mix_long(long double x) {
    uint64_t u[2] = {0, 0};
    memcpy(u, &x, 10);
    if (isnan(x)) u[0] = u[1] = 1;
    mix(u[0]); mix(u[1] & 0xffff);
}

static double values[] = {
    0.0, -0.0, 1.0, -1.0, 0.1, -0.1, 0.5, 1.5, 2.5, 3.0, 1e10, -1e10, 1e-10, 1e300, -1e300, 1e-300, 5e-324, -5e-324,
    2.2250738585072014e-308, 2.2250738585072009e-308, 1.7976931348623157e308, 4294967295.5, 2147483648.0, -2147483648.5,
    9223372036854775807.0, -9223372036854775808.0, 3.4028234663852886e38, 1.1754943508222875e-38, 1e-45, 123456.789,
    INFINITY, -INFINITY, NAN, 3.141592653589793, 2.718281828459045, 1.4142135623730951,
};
#define COUNT (sizeof values / sizeof *values)

static void operations(int mode, const char *name) {
    fesetround(mode);
    for (unsigned i = 0; i < COUNT; i++)
        for (unsigned j = 0; j < COUNT; j++) {
            volatile double a = values[i], b = values[j];
            volatile float fa = (float)a, fb = (float)b;
            volatile long double la = a, lb = b;
            feclearexcept(FE_ALL_EXCEPT);
            volatile double results[] = {a + b, a - b, a * b, a / b, sqrt(a), fma(a, b, 1.0), fmod(a, b), (double)fa};
            volatile float small[] = {fa + fb, fa - fb, fa * fb, fa / fb, sqrtf(fa)};
            volatile long double large[] = {la + lb, la - lb, la * lb, la / lb, sqrtl(la), fabsl(la)};
            for (unsigned k = 0; k < sizeof results / sizeof *results; k++) mix_double(results[k]);
            for (unsigned k = 0; k < sizeof small / sizeof *small; k++) mix_float(small[k]);
            for (unsigned k = 0; k < sizeof large / sizeof *large; k++) mix_long(large[k]);
            mix(a < b); mix(a <= b); mix(a == b); mix(a != b); mix(isunordered(a, b)); mix(la < lb); mix(fa >= fb);
            mix_double(rint(a)); mix_double(nearbyint(b)); mix_double(floor(a)); mix_double(ceil(a));
            mix_double(trunc(a)); mix_double(copysign(a, b)); mix_double(fmin(a, b)); mix_double(fmax(a, b));
            if (fabs(a) < 9e18) { mix((uint64_t)llrint(a)); mix((uint64_t)(int64_t)a); }
            if (fabs(a) < 2e9) { mix((uint32_t)(int32_t)a); mix((uint32_t)(int32_t)fa); mix((uint64_t)llrintl(la)); }
        }
    fesetround(FE_TONEAREST);
    printf("%s %016llx\n", name, (unsigned long long)sum);
}

static void exceptions(void) {
    volatile double zero = 0, one = 1, huge_value = 1e308, tiny = 5e-324, nothing = NAN;
    volatile double r;
    feclearexcept(FE_ALL_EXCEPT); r = one / zero; printf("%x ", fetestexcept(FE_ALL_EXCEPT) & FE_DIVBYZERO);
    feclearexcept(FE_ALL_EXCEPT); r = zero / zero; printf("%x ", fetestexcept(FE_INVALID));
    feclearexcept(FE_ALL_EXCEPT); r = huge_value * 10; printf("%x ", fetestexcept(FE_OVERFLOW | FE_INEXACT));
    feclearexcept(FE_ALL_EXCEPT); r = tiny / 3; printf("%x ", fetestexcept(FE_UNDERFLOW | FE_INEXACT));
    feclearexcept(FE_ALL_EXCEPT); r = one / 3; printf("%x ", fetestexcept(FE_INEXACT));
    feclearexcept(FE_ALL_EXCEPT); r = nothing + 1; printf("%x\n", fetestexcept(FE_INVALID));
    (void)r;
}

static void library(void) {
    for (unsigned i = 0; i < COUNT; i++) {
        volatile double a = values[i];
        int exponent;
        double whole;
        mix_double(sin(a)); mix_double(cos(a)); mix_double(tan(a)); mix_double(atan(a)); mix_double(exp(a));
        mix_double(log(a)); mix_double(cbrt(a)); mix_double(tanh(a)); mix_double(erf(a)); mix_double(log1p(a));
        mix_double(expm1(a)); mix_double(asinh(a)); mix_double(frexp(a, &exponent)); mix_double(modf(a, &whole));
        mix_double(pow(fabs(a), 1.25)); mix_double(hypot(a, 3)); mix_double(atan2(a, 2)); mix_double(ldexp(a, 5));
        mix_long(sinl(a)); mix_long(expl(a)); mix_long(logl(fabsl(a))); mix_long(atanl(a)); mix_long(powl(fabsl(a), 0.3L));
        mix_float(sinf((float)a)); mix_float(expf((float)a)); mix_float(logf((float)a));
    }
    printf("libm %016llx\n", (unsigned long long)sum);
}

static void text(void) {
    char line[8192];
    for (unsigned i = 0; i < COUNT; i++) {
        double a = values[i];
        if (isnan(a)) continue;
        int n = snprintf(line, sizeof line, "%.17g %a %.3f %e %Lg %.30Lg", a, a, a, a, (long double)a, (long double)a / 3);
        for (int k = 0; k < n; k++) mix((unsigned char)line[k]);
        if (strtod(line, NULL) != a) printf("lost %s\n", line);
    }
    printf("text %016llx\n", (unsigned long long)sum);
}

static void loops(void) {
    double pi = 0, sign = 1;
    for (int i = 0; i < 3000000; i++) { pi += sign / (2 * i + 1); sign = -sign; }
    float x = 0.5f;
    for (int i = 0; i < 3000000; i++) x = 3.9f * x * (1.0f - x);
    long double e = 1, term = 1;
    for (int i = 1; i < 40; i++) { term /= i; e += term; }
    printf("%.15f %.9g %.20Lg\n", pi * 4, x, e);
}

static void matrices(void) {
    enum { N = 96 };
    static double a[N][N], b[N][N], c[N][N];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) { a[i][j] = (i * 31 + j * 17) % 101 / 7.0; b[i][j] = (i * 13 - j * 7) % 89 / 3.0; }
    for (int round = 0; round < 3; round++)
        for (int i = 0; i < N; i++)
            for (int k = 0; k < N; k++)
                for (int j = 0; j < N; j++) c[i][j] += a[i][k] * b[k][j];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) mix_double(c[i][j]);
    printf("matrix %016llx\n", (unsigned long long)sum);
}

int main(void) {
    operations(FE_TONEAREST, "nearest"); operations(FE_DOWNWARD, "down"); operations(FE_UPWARD, "up");
    operations(FE_TOWARDZERO, "zero");
    exceptions(); library(); text(); loops(); matrices();
    return 0;
}
