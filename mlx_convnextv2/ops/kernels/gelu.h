// The exact GELU in float32, x * Phi(x) (Hendrycks and Gimpel 2016, arXiv:1606.08415), to 2e-7 of |x|.
//
// For a = |x| it is max(x, 0) - a * (1 - Phi(a)), and the tail 1 - Phi(a) is exp(-a * a / 2) times a smooth function of
// a, here a polynomial in 1 / (1 + 0.35 * a) (the form of Abramowitz and Stegun 7.1.26): no branch, and the small
// values left of zero keep their relative precision. The coefficients are a fit of the least largest relative error.
FUNCTION float normal_tail(float a, float exponential_part) {
  const float u = 1.0f / multiply_add(0.35f, a, 1.0f);
  float tail = -0.029145985f;
  tail = multiply_add(tail, u, 0.143971962f);
  tail = multiply_add(tail, u, -0.255714793f);
  tail = multiply_add(tail, u, 0.159174767f);
  tail = multiply_add(tail, u, -0.0231102463f);
  tail = multiply_add(tail, u, 0.105508175f);
  tail = multiply_add(tail, u, 0.119832825f);
  tail = multiply_add(tail, u, 0.139861875f);
  tail = multiply_add(tail, u, 0.139621404f);
  return tail * (u * exponential_part);
}

FUNCTION float gelu(float x) {
  const float a = magnitude(x);
  return x < 16.0f ? larger(x, 0.0f) - a * normal_tail(a, exponential(-0.5f * a * a)) : x;  // so that infinity and NaN stay
}
