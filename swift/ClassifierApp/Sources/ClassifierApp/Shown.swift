import CoreGraphics
import Foundation
import MLXConvNeXtV2

extension PixelImage {
    /// The image to draw.
    var drawn: CGImage? {
        guard let provider = CGDataProvider(data: Data(pixels) as CFData) else { return nil }
        return CGImage(
            width: width, height: height, bitsPerComponent: 8, bitsPerPixel: 8 * bytesPerPixel,
            bytesPerRow: width * bytesPerPixel, space: CGColorSpaceCreateDeviceRGB(),
            bitmapInfo: CGBitmapInfo(
                rawValue: (bytesPerPixel == 4 ? CGImageAlphaInfo.noneSkipLast : .none).rawValue),
            provider: provider, decode: nil, shouldInterpolate: true, intent: .defaultIntent)
    }
}

extension HeatMap {
    /// From clear to red, one pixel for each position.
    var overlay: CGImage? {
        let pixels = normalised.flatMap { value -> [UInt8] in
            let alpha = UInt8((255 * value).rounded())
            return [alpha, 0, 0, alpha]  // multiplied by alpha
        }
        guard let provider = CGDataProvider(data: Data(pixels) as CFData) else { return nil }
        return CGImage(
            width: width, height: height, bitsPerComponent: 8, bitsPerPixel: 32, bytesPerRow: 4 * width,
            space: CGColorSpaceCreateDeviceRGB(),
            bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.premultipliedLast.rawValue), provider: provider,
            decode: nil, shouldInterpolate: true, intent: .defaultIntent)
    }
}
