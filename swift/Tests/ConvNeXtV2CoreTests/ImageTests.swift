import Foundation
import TestFixtures
import XCTest

@testable import ConvNeXtV2Core

final class ImageTests: XCTestCase {
    func testPixelValuesEqualPythonsToTheLastBit() throws {
        for entry in try Fixtures.list("processing") {
            let processor = try ConvNeXtImageProcessor(fields: XCTUnwrap(entry["processor"]?.fields))
            let image = try Fixtures.image(XCTUnwrap(entry["image"]?.text))
            let found = try processor.preprocess(.pixels(image))
            let name = "\(entry["processor"] ?? .null) \(entry["image"] ?? .null)"
            XCTAssertEqual([found.height, found.width, found.channels], entry["shape"]?.list?.map(\.whole), name)
            XCTAssertEqual(found.values, try Fixtures.floats(entry["values"]), name)
        }
    }

    func testAFourthByteIsIgnored() throws {
        let image = try Fixtures.image("wide")
        var padded: [UInt8] = []
        for start in stride(from: 0, to: image.pixels.count, by: 3) {
            padded += image.pixels[start..<start + 3]
            padded.append(UInt8(start % 256))
        }
        let four = try PixelImage(width: image.width, height: image.height, bytesPerPixel: 4, pixels: padded)
        for fields: [String: JSONValue] in [
            ["size": .integer(12)], ["size": .integer(12), "resample": .integer(0)],
            ["do_resize": .bool(false), "image_mean": .array([.number(0.5)]), "image_std": .array([.number(0.5)])],
        ] {
            let processor = try ConvNeXtImageProcessor(fields: fields)
            XCTAssertEqual(try processor.preprocess(.pixels(four)), try processor.preprocess(.pixels(image)))
        }
    }

    func testTransparencyIsLaidOverWhiteAsPillowDoesIt() throws {
        let alpha = try Fixtures.object("alpha")
        let rgba = [UInt8](try XCTUnwrap(Data(base64Encoded: XCTUnwrap(alpha["rgba"]?.text))))
        let rgb = [UInt8](try XCTUnwrap(Data(base64Encoded: XCTUnwrap(alpha["rgb"]?.text))))
        XCTAssertEqual(try PixelImage(width: 64, height: 16, rgba: rgba).pixels, rgb)
    }

    func testAnImageMustHaveItsPixels() throws {
        for (width, height, bytes) in [(2, 2, 11), (0, 2, 0), (-1, -1, 3), (Int.max, 2, 6)] {
            XCTAssertThrowsError(
                try PixelImage(width: width, height: height, pixels: [UInt8](repeating: 0, count: bytes)))
        }
    }

    func testAStripThatWouldBecomeGigabytesIsRefused() throws {
        let strip = try PixelImage(width: 1, height: 200_000, pixels: [UInt8](repeating: 0, count: 600_000))
        for resample in [0, 3] {
            let processor = try ConvNeXtImageProcessor(size: 224, resample: resample)
            XCTAssertThrowsError(try processor.preprocess(.pixels(strip))) { error in
                XCTAssertTrue(error.localizedDescription.contains("too narrow to be resized: crop it first"))
            }
        }
    }

    func testAProcessorThatMakesNoSenseIsRefused() throws {
        let wrong: [(String, JSONValue)] = [
            ("size", .integer(0)), ("size", .object(["height": .integer(224)])), ("size", .text("224")),
            ("crop_pct", .number(0)), ("crop_pct", .number(1.5)), ("crop_mode", .text("border")),
            ("resample", .integer(6)), ("resample", .number(2.5)), ("do_resize", .integer(1)),
            ("rescale_factor", .integer(0)), ("image_std", .integer(0)),
            ("image_mean", .array([.integer(1), .integer(2)])),
            ("image_mean", .array([.number(0.5)])), ("do_center_crop", .bool(true)), ("do_pad", .integer(0)),
            ("image_processor_type", .text("ViTImageProcessor")), ("sharpen", .bool(true)),
        ]
        for (name, value) in wrong {
            XCTAssertThrowsError(try ConvNeXtImageProcessor(fields: [name: value]), "\(name) \(value)") { error in
                XCTAssertTrue(error is ConvNeXtV2Error)
            }
        }
        let inert: [String: JSONValue] = ["do_pad": .bool(false), "crop_size": .integer(9), "sharpen": .null]
        XCTAssertNoThrow(try ConvNeXtImageProcessor(fields: inert))
    }
}

extension JSONValue {
    static func text(_ value: String) -> JSONValue { .string(value) }
}
