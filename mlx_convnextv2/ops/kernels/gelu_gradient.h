// GELU(x) as gelu.h has it, and its derivative Phi(x) + x * phi(x), with the normal density phi.
FUNCTION float gelu_and_derivative(float x, LOCAL float& derivative) {
  const float a = magnitude(x);
  const float exponential_part = exponential(-0.5f * a * a);
  const float tail = normal_tail(a, exponential_part);
  const float slope = x < 0.0f ? tail : 1.0f - tail;
  const bool is_moderate = a < 16.0f;  // elsewhere the rest is 0, or infinity times 0
  derivative = is_moderate ? multiply_add(x, 0.398942280f * exponential_part, slope) : slope;
  const float value = larger(x, 0.0f) - a * tail;
  return x < 16.0f ? value : x;
}
